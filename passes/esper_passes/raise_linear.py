"""The way back from kernels of linear layers: unpacked weights, and the op that there was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.codec import decode_target
from esper.ir.origin import Origin, origin_of
from esper.plan import Edit, Erase, Insert, Plan, Ref, Retarget
from esper.state import Drop, Op, StateTransform
from esper_passes import packing
from esper_passes.kernel_ops import ops as kernels
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import RaiseKernel

aten = torch.ops.aten
_COLUMNS = (aten.addmm.default, aten.mm.default, aten.matmul.default)  # weights (inputs, outputs)


@dataclass(frozen=True)
class _Signature:
    """Positions of what a kernel reads besides x and its values."""

    bias: int
    scale: int | None = None
    index: int | None = None  # rows and run are behind the bias


SIGNATURES: dict[Any, _Signature] = {
    kernels.vnm_linear.default: _Signature(bias=3, index=2),
}


def raise_linear(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which a node is a linear layer on a dense weight again."""
    signature = SIGNATURES[node.target]
    args: list[Any] = list(node.args)
    names, calls = model.canonical_names(), origin_of(node)
    layer = calls[-1] if calls else Origin(node.name, "aten.linear.default")
    target = decode_target(layer.op)
    turned = target in _COLUMNS
    x, values, bias = args[0], args[1], args[signature.bias]
    outputs, inputs = int(values.meta["val"].shape[0]), int(x.meta["val"].shape[-1])
    shape = (inputs, outputs) if turned else (outputs, inputs)
    weight: Any = Ref(values.name)
    state: dict[str, tuple[Op, ...]] = {}
    inserts: list[Edit] = []
    gone: list[Edit] = []
    if signature.scale is not None:
        scale = args[signature.scale]
        column = (1, outputs) if turned else (outputs, 1)
        state[names[str(scale.target)]] = (packing.flatten(column).inverse(column),)
        call = calls[0] if len(calls) > 1 else Origin(f"{node.name}_weight", "aten.mul.Tensor")
        name = fresh(model.nodes, call.name)
        inserts.append(
            Insert(
                name, "call_function", decode_target(call.op), (weight, Ref(scale.name)), node.name,
                module=call.module or str(node.meta.get("module") or ""), source=call.source,
            )
        )  # fmt: skip
        weight = Ref(name)
    if signature.index is not None:
        read = args[signature.index]
        index = model.tensor(str(read.target))
        assert index is not None
        rows, run = args[signature.bias + 1 :]
        move = packing.pack_runs(index, shape, rows, run, turned).inverse(shape)
        state[names[str(values.target)]] = (move,)
        state[names[str(read.target)]] = (Drop(),)
        gone.append(Erase(read.name))
    elif turned:
        state[names[str(values.target)]] = (packing.turn(shape).inverse(shape),)
    given = () if bias is None else (Ref(bias.name),)
    whole = (Ref(x.name), weight)
    new = (*given, *whole) if target is aten.addmm.default else (*whole, *given)
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} is {layer.op} again",
        edits=(*inserts, Retarget(node.name, target, new), *gone),
        state=StateTransform(state),
        tolerance=proposal.tolerance,
    )
