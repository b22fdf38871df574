"""The way back from kernels of linear layers: unpacked weights, and the op that there was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.ir.codec import decode_target
from esper.ir.origin import Origin, origin_of
from esper.plan import Plan, Ref, Retarget
from esper.state import StateTransform
from esper_passes.kept import Kept, Runs, TwoOfFour
from esper_passes.kernel_ops import ops as kernels
from esper_passes.packed_weight import Unpacker

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import RaiseKernel

aten = torch.ops.aten
LINEAR, MUL = "aten.linear.default", "aten.mul.Tensor"


@dataclass(frozen=True)
class _Signature:
    """Positions of what a kernel reads besides x and its values."""

    bias: int
    scale: int | None = None
    index: int | None = None  # rows and run are behind the bias


_SIGNATURES: dict[Any, _Signature] = {
    kernels.vnm_linear.default: _Signature(bias=3, index=2),
    kernels.int8_linear.default: _Signature(bias=3, scale=2),
    kernels.vnm_int8_linear.default: _Signature(bias=4, scale=2, index=3),
    kernels.sparse24_linear.default: _Signature(bias=3, index=2),
}


def raise_linear(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which a node is a linear layer on a dense weight again."""
    signature, calls = _SIGNATURES[node.target], origin_of(node)
    args: list[Any] = list(node.args)
    layer = calls[-1] if calls else Origin(node.name, LINEAR)
    between = calls[0] if len(calls) > 1 else Origin(f"{node.name}_weight", MUL)
    scale: Any = None if signature.scale is None else args[signature.scale]
    index: Any = None if signature.index is None else args[signature.index]
    kept: Kept | None = None
    if node.target is kernels.sparse24_linear.default:
        kept = TwoOfFour(stored(model, index))
    elif index is not None:
        kept = Runs(stored(model, index), *args[signature.bias + 1 :])
    size = int(node.meta["val"].shape[-1]), int(args[0].meta["val"].shape[-1])
    unpacker = Unpacker(model, node)
    weight = unpacker.add(args[1], scale, index, kept, size, layer, between)
    target, new = as_layer(layer, Ref(args[0].name), weight, args[signature.bias])
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} is {layer.op} again",
        edits=(*unpacker.inserts, Retarget(node.name, target, new), *unpacker.gone),
        state=StateTransform(unpacker.state),
        tolerance=proposal.tolerance,
    )


def stored(model: Model, read: fx.Node) -> Tensor:
    """The tensor that a node reads."""
    tensor = model.tensor(str(read.target))
    assert tensor is not None
    return tensor


def as_layer(layer: Origin, x: Ref, weight: Ref, bias: Any) -> tuple[Any, tuple[Any, ...]]:
    """Op and arguments of a linear layer as it was written."""
    target = decode_target(layer.op)
    given = () if bias is None else (Ref(bias.name),)
    if target is aten.addmm.default:
        return target, (*given, x, weight)
    return target, (x, weight, *given)
