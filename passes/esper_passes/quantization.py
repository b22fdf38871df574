"""The rewrites behind `QuantizeLayers` and `QuantizePhage`.

Weight-only modes keep a layer's op and make its weight floating where it is used: the layer
computes what it would with rounded weights, bit for bit, gradients flow on to what is before it,
and every backend and exporter knows the ops. This saves memory and files, not time: on CPUs the
weight is written out in floating point at each call, and PyTorch's own kernel for it
(`aten._weight_int8pack_mm`) is meant for bfloat16 and many times slower in float32.

`dynamic-int8` multiplies integers (`aten._int_mm`), which is what makes CPUs with such
instructions faster: each row of the input is rounded with a scale of its own (as in LLM.int8(),
Dettmers et al., arXiv:2208.07339, without its outliers), half precision in float32.

Weights that were quantised are buffers and train no more; no master copy is kept. Biases stay
parameters. The way back (`DequantizeLayers`) gives the rounded weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.ir.ancestors import ancestors
from esper.passbase import Rewrite
from esper.plan import Edit, Erase, Plan, Ref, Refusal, ReplaceUses, SetArg
from esper.propose import ProposalBase, QuantizeLayers, QuantizePhage
from esper.propose.swaps import Quantization
from esper.state import Create, Drop, Op, StateTransform
from esper_passes.affine import Affine, affine
from esper_passes.editing import Inserter, encoded, layer_of, weight_of, weight_read
from esper_passes.integer_layer import LEAST, integer_calls, wider
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
GROUP = 32  # inputs that share a scale in int4
GROUPED = ("weight-int8",)  # modes for which it is all one in how many groups a convolution is


# -- numbers ---------------------------------------------------------------------------------------


def int8(weight: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale for each position along `outputs`: (integers, scales)."""
    others = [dim for dim in range(weight.ndim) if dim != outputs]
    scale = _scale(weight.abs().amax(others, keepdim=True), 127)
    return (_wide(weight) / scale).round().clamp(-127, 127).to(torch.int8), scale


def int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int4 of (outputs, inputs), two a byte, even inputs in the low half.

    Returns bytes (outputs, inputs / 2) and scales (outputs, inputs / GROUP, 1).
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    scale = _scale(groups.abs().amax(-1, keepdim=True), 7)
    whole = ((_wide(groups) / scale).round().clamp(-7, 7) + 8).to(torch.uint8).reshape(weight.shape)
    return whole[:, ::2] | (whole[:, 1::2] << 4), scale


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wider(tensor.dtype))


def _scale(largest: Tensor, steps: int) -> Tensor:
    """The largest element over its integer, as it is stored: integers are made with that number.

    Never zero, the least positive number of float16 being far above `LEAST`.
    """
    limits = torch.finfo(largest.dtype)
    scale = (_wide(largest) / steps).to(largest.dtype)
    return scale.clamp_min(max(LEAST, limits.smallest_normal * limits.eps))


# -- rewrites --------------------------------------------------------------------------------------


class QuantizeLayersRewrite(Rewrite):
    """The weight of each named layer becomes integers and scales."""

    type = "quantize-layers"

    def plan(self, model: Model, proposal: QuantizeLayers) -> Plan | Refusal:
        """Refuses layers without a weight of their own, and see `_unready`."""
        layers: list[Affine] = []
        for name in dict.fromkeys(proposal.nodes):
            layer = layer_of(model, name, grouped=proposal.mode in GROUPED)
            if isinstance(layer, Refusal):
                return layer
            layers.append(layer)
        return _plan(model, proposal, proposal.mode, layers, proposal.nodes[0])


class QuantizePhageRewrite(Rewrite):
    """The same for all layers of a region that the mode fits."""

    type = "quantize-phage"

    def plan(self, model: Model, proposal: QuantizePhage) -> Plan | Refusal:
        """Refuses a region without such a layer (`nothing-to-quantise`)."""
        phage, nodes = model.anatomy.phages[proposal.region], model.nodes
        grouped = proposal.mode in GROUPED
        layers = [
            layer
            for name in phage.nodes
            if isinstance(layer := affine(model, nodes[name], grouped=grouped), Affine)
            and not misfit(model, layer, proposal.mode)
        ]
        if not layers:
            return Refusal(
                "nothing-to-quantise",
                f"{phage.id} holds no layer that {proposal.mode} fits",
                phage.id,
                "choose another mode or region",
            )
        return _plan(model, proposal, proposal.mode, layers, phage.id)


def misfit(model: Model, layer: Affine, mode: Quantization) -> Refusal | None:
    """Why a mode does not fit a layer."""
    weight = weight_of(model, layer)
    if mode != "weight-int8" and layer.form == "convolution":
        return Refusal(
            "no-integer-kernel",
            f"{mode} has no convolution, as %{layer.node} is",
            layer.node,
            "quantise it with mode=weight-int8",
        )
    inputs = layer.matrix(weight).shape[1]
    if mode == "dynamic-int8" and inputs < 2:
        return Refusal(
            "no-integer-kernel",
            f"%{layer.node} has one input, for which PyTorch's product of integers is wrong",
            layer.node,
            "quantise it with mode=weight-int8",
        )
    if mode == "weight-int4" and (layer.form != "rows" or inputs % GROUP):
        return Refusal(
            "odd-inputs",
            f"int4 needs a linear layer whose inputs are a multiple of {GROUP}; %{layer.node} "
            f"has {inputs}",
            layer.node,
            "quantise it with mode=weight-int8",
        )
    return None


def _unready(
    model: Model, layer: Affine, mode: Quantization, behind: set[fx.Node] | None
) -> Refusal | None:
    weight = model.tensor(layer.weight)
    assert weight is not None
    if weight.grad is not None:
        return Refusal(
            "pending-gradient",
            f"{layer.weight} holds a gradient, which would be lost",
            layer.node,
            "call optimizer.zero_grad() before the boundary",
        )
    if behind is not None and any(
        read.op == "get_attr"
        and (tensor := model.tensor(str(read.target))) is not None
        and tensor.requires_grad
        for read in behind
    ):
        return Refusal(
            "training-mode",
            f"rounding what %{layer.node} reads stops the gradients of what trains before it",
            layer.node,
            f"call model.eval(), or use a weight-only mode instead of {mode}",
        )
    return misfit(model, layer, mode)


def _plan(
    model: Model,
    proposal: ProposalBase,
    mode: Quantization,
    layers: Sequence[Affine],
    target: str,
) -> Plan | Refusal:
    nodes = model.nodes
    taken = {name for name, _ in model.all_tensors()}
    ops: dict[str, tuple[Op, ...]] = {}
    edits: list[Edit] = []
    before = after = 0
    named: set[str] = set()
    for layer in layers:
        node = nodes[layer.node]
        behind = None
        if mode == "dynamic-int8" and model.training:
            behind = ancestors([_operand(node, layer)])
        refusal = _unready(model, layer, mode, behind)
        if refusal is not None:
            return refusal
        weight = weight_of(model, layer)
        outputs = 1 if layer.form == "columns" else 0
        if mode == "weight-int4":
            values, scale = int4(weight)
        elif mode == "dynamic-int8":
            values, scale = int8(_wide(layer.matrix(weight)).contiguous(), 0)
            scale = scale.flatten()
        else:
            values, scale = int8(weight, outputs)
        suffix = "int4" if mode == "weight-int4" else "int8"
        names = [fresh(taken, f"{layer.weight}_{part}") for part in (suffix, "scale")]
        taken.update(names)
        ops[names[0]] = (Create(values, trainable=False),)
        ops[names[1]] = (Create(scale, trainable=False),)
        ops[layer.weight] = (Drop(),)
        insert = Inserter(model, node, named)
        reads = [insert.read(name, f"{node.name}_{p}") for name, p in _parts(names, suffix)]
        if mode == "dynamic-int8":
            change = _integer(insert, node, layer, reads)
        else:
            wide = _widened(insert, node, reads, weight, mode)
            change = [SetArg(node.name, (layer.operand + 1,), wide)]
        named |= {edit.name for edit in insert.edits}
        edits += [*insert.edits, *change, Erase(weight_read(node, layer).name)]
        before += weight.numel() * weight.element_size()
        after += sum(t.numel() * t.element_size() for t in (values, scale))
    return Plan(
        proposal=proposal,
        summary=f"{len(layers)} weights of {target} in {mode}",
        edits=tuple(edits),
        state=StateTransform(ops),
        tolerance="lossy",
        figures={"layers": len(layers), "bytes_before": before, "bytes_after": after},
    )


def _parts(names: list[str], suffix: str) -> list[tuple[str, str]]:
    return list(zip(names, (suffix, "scale"), strict=True))


def _operand(node: fx.Node, layer: Affine) -> fx.Node:
    operand = node.args[layer.operand]
    assert isinstance(operand, fx.Node)
    return operand


def _widened(
    insert: Inserter, node: fx.Node, reads: list[Ref], weight: Tensor, mode: Quantization
) -> Ref:
    """The weight in floating point. Integers times floats are floats, of whatever precision."""
    name, (values, scale) = node.name, reads
    if mode == "weight-int8":
        return insert.call(aten.mul.Tensor, (values, scale), f"{name}_weight")
    low = insert.call(aten.bitwise_and.Scalar, (values, 15), f"{name}_low")
    # Not a shift: ONNX converters make signed bytes of it.
    high = insert.call(aten.floor_divide.Scalar, (values, 16), f"{name}_high")
    both = insert.call(aten.stack.default, ([low, high], -1), f"{name}_halves")
    outputs, inputs = weight.shape
    shape = [outputs, inputs // GROUP, GROUP]
    groups = insert.call(aten.view.default, (both, shape), f"{name}_groups")
    signed = insert.call(aten.to.dtype, (groups, torch.int8), f"{name}_signed")
    centred = insert.call(aten.sub.Tensor, (signed, 8), f"{name}_centred")
    product = insert.call(aten.mul.Tensor, (centred, scale), f"{name}_scaled")
    return insert.call(aten.view.default, (product, [outputs, inputs]), f"{name}_weight")


def _integer(insert: Inserter, node: fx.Node, layer: Affine, reads: list[Ref]) -> list[Edit]:
    """Rows rounded, multiplied as integers, scaled back; another node stands for the layer's."""

    def call(target: Any, args: tuple[Any, ...], what: str) -> Ref:
        return insert.call(target, args, f"{node.name}_{what}")

    bias = None
    if layer.bias is not None:
        bias = encoded(node.args)[0 if layer.form == "columns" else 2]
    values, scale = reads
    result = call(*integer_calls(call, _operand(node, layer), node, values, scale, bias))
    return [ReplaceUses(node.name, result.name), Erase(node.name)]
