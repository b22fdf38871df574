"""The rewrite behind `LowerLinear`: a weight is packed and its layer calls a kernel.

Packing moves elements and computes nothing, so gradients, optimizer moments and averages move
along, and unpacking gives the same weight again, bit for bit. Whatever is dropped is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from esper.passbase import Rewrite
from esper.plan import Erase, Plan, Ref, Refusal, Retarget, SetLife
from esper.propose import LowerLinear
from esper.propose.lowering import OF_RUNS
from esper.state import Create, Drop, Forget, Op, StateTransform
from esper_passes import packing
from esper_passes.editing import Inserter
from esper_passes.kernel_ops import ops as kernels
from esper_passes.liveness import fresh
from esper_passes.lowerable import Lowerable, lowerable

if TYPE_CHECKING:
    from esper.ir.model import Model


class LowerLinearRewrite(Rewrite):
    """Node and weight keep their names, and a parameter stays the same object."""

    type = "lower-linear"

    def plan(self, model: Model, proposal: LowerLinear) -> Plan | Refusal:
        """Refuses what is no linear layer with a weight of its own, and weights without zeros."""
        layer = _layer(model, proposal)
        if isinstance(layer, Refusal) or proposal.kernel not in OF_RUNS:
            return layer if isinstance(layer, Refusal) else _plan(model, proposal, layer, None)
        try:
            index = packing.runs_of(_filled(model, layer), proposal.rows, proposal.run)
        except ValueError as error:
            return Refusal("no-runs", f"{layer.weight}: {error}", proposal.node, "name other runs")
        if index.shape[1] == -(-layer.size[1] // proposal.run):
            return Refusal(
                "nothing-to-skip",
                f"some group of {proposal.rows} rows of {layer.weight} needs every run of "
                f"{proposal.run} inputs",
                proposal.node,
                "sparsify it first, or name the rows and runs of its pattern",
            )
        return _plan(model, proposal, layer, index)

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """A copy keeps the runs of the live model, and must be zero where that is, too."""
        proposal = plan.proposal
        assert isinstance(proposal, LowerLinear)
        layer = _layer(model, proposal)
        if isinstance(layer, Refusal) or proposal.kernel not in OF_RUNS:
            return layer if isinstance(layer, Refusal) else _plan(model, proposal, layer, None)
        every = (op for ops in plan.state.ops.values() for op in ops)
        index = next(op.value for op in every if isinstance(op, Create))
        kept = packing.kept(index, layer.size, proposal.rows, proposal.run)
        filled = _filled(model, layer)
        if bool((filled & ~kept.to(filled.device)).any()):
            return Refusal(
                "other-zeros",
                f"{layer.weight} is not zero where the live model's is",
                proposal.node,
                "lower at the boundary at which the weight becomes sparse",
            )
        return _plan(model, proposal, layer, index)


def _layer(model: Model, proposal: LowerLinear) -> Lowerable | Refusal:
    name = proposal.node
    layer = lowerable(model, model.nodes[name])
    if layer is None:
        return Refusal(
            "no-weight",
            f"%{name} is no linear layer with a weight of its own",
            name,
            "name a linear layer",
        )
    if isinstance(layer, Refusal):
        return layer
    if (layer.scale is not None) != ("int8" in proposal.kernel):
        kind = "floating" if layer.scale is None else "int8"
        return Refusal(
            "other-weight",
            f"{layer.weight} is {kind}, which {proposal.kernel} does not read",
            name,
            "quantise it first" if layer.scale is None else "name a kernel of int8 weights",
        )
    return layer


def _filled(model: Model, layer: Lowerable) -> Tensor:
    """Where the weight counts, as (outputs, inputs): by its mask, or where it is not zero."""
    tensor = model.tensor(str((layer.mask or layer.read).target))
    assert tensor is not None
    return layer.matrix(tensor.detach()) != 0


def _plan(model: Model, proposal: LowerLinear, layer: Lowerable, index: Tensor | None) -> Plan:
    _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the dense weight
    names, node = model.canonical_names(), layer.node
    shape = tuple(layer.read.meta["val"].shape)
    insert = Inserter(model, node)
    state: dict[str, tuple[Op, ...]] = {}
    gone: list[Erase] = []
    lives: tuple[SetLife, ...] = ()
    weight: list[Op] = []
    reads = [Ref(layer.read.name)]
    if layer.between is not None:
        gone.append(Erase(layer.between.name))
    if layer.mask is not None:
        mask = names[str(layer.mask.target)]
        value = model.tensor(mask)
        assert value is not None
        weight.append(Forget(~value, values=True))
        state[mask] = (Drop(),)
        gone.append(Erase(layer.mask.name))
        lives = (SetLife(f"mask:{layer.weight}", None),)
    if layer.scale is not None:
        reads.append(Ref(layer.scale.name))
        sizes = tuple(layer.scale.meta["val"].shape)
        state[names[str(layer.scale.target)]] = (packing.flatten(sizes),)
    if index is not None:
        weight.append(packing.pack_runs(index, shape, proposal.rows, proposal.run, layer.columns))
        name = fresh(names, f"{layer.weight}_index")
        device = layer.read.meta["val"].device
        state[name] = (Create(index.to(device, torch.int32), trainable=False),)
        reads.append(insert.read(name, f"{node.name}_index"))
    elif layer.columns:
        weight.append(packing.turn(shape))
    if weight:
        state[layer.weight] = tuple(weight)
    bias = None if layer.bias is None else Ref(layer.bias.name)
    sizes_of_runs = () if index is None else (proposal.rows, proposal.run)
    args = (Ref(layer.x.name), *reads, bias, *sizes_of_runs)
    target = getattr(kernels, proposal.kernel).default
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} computes with esper::{proposal.kernel}",
        edits=(*insert.edits, Retarget(node.name, target, args, layer.origin()), *gone),
        state=StateTransform(state),
        lives=lives,
        tolerance=proposal.tolerance,
        figures={} if index is None else _figures(layer, index, proposal.run),
    )


def _figures(layer: Lowerable, index: Tensor, run: int) -> dict[str, Any]:
    outputs, inputs = layer.size
    kept = index.shape[1] * run
    bytes_each = layer.read.meta["val"].element_size()
    return {
        "density": kept / inputs,
        "bytes_before": outputs * inputs * bytes_each,
        "bytes_after": outputs * kept * bytes_each + index.numel() * 4,
    }
