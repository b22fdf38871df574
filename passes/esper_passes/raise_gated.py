"""The way back from the kernel of gated MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.origin import Origin, origin_of
from esper.plan import Plan, Ref, Retarget
from esper.state import StateTransform
from esper_passes.gated import OPS
from esper_passes.kept import Runs
from esper_passes.packed_weight import Unpacker
from esper_passes.raise_linear import LINEAR, MUL, as_layer, stored

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import RaiseKernel

aten = torch.ops.aten


@dataclass(frozen=True)
class _Calls:
    """The calls that there were, or plain ones.

    Attributes:
        order: `gate`, `act` and `up` in graph order.
        by_part: the call of each.
        between: the call that makes the weight of each layer, if its weight is int8.
        act_first: whether the activation is the first factor of the product.
    """

    order: tuple[str, ...]
    by_part: dict[str, Origin]
    between: dict[str, Origin]
    act_first: bool

    @classmethod
    def of(cls, node: fx.Node, activation: str) -> _Calls:
        calls = {call.name: call for call in origin_of(node)}
        op = OPS[activation][0]
        if not calls:
            parts = {
                part: Origin(f"{node.name}_{part}", op if part == "act" else LINEAR)
                for part in ("gate", "act", "up")
            }
            between = {p: Origin(f"{c.name}_weight", MUL) for p, c in parts.items()}
            return cls(tuple(parts), parts, between, True)
        first, second = (calls[name] for name in calls[node.name].reads)
        act, up = (first, second) if first.op == op else (second, first)
        parts = {"gate": calls[act.reads[0]], "act": act, "up": up}
        between = {p: calls[c.reads[0]] for p, c in parts.items() if p != "act" and c.reads}
        order = sorted(parts, key=lambda part: list(calls).index(parts[part].name))
        return cls(tuple(order), parts, between, act is first)


def raise_gated(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which a node is the product of two layers again."""
    args: list[Any] = list(node.args)
    activation = args[7]
    size = int(node.meta["val"].shape[-1]), int(args[0].meta["val"].shape[-1])
    calls, unpacker = _Calls.of(node, activation), Unpacker(model, node)
    made: dict[str, Ref] = {}
    for part in calls.order:
        call = calls.by_part[part]
        if part == "act":
            made[part] = unpacker.call(call, (made["gate"],), **OPS[activation][1])
            continue
        at = 1 if part == "gate" else 2
        values, scale, index = args[at], args[at + 2], args[at + 4]
        kept = None if index is None else Runs(stored(model, index), *args[8:])
        weight = unpacker.add(values, scale, index, kept, size, call, calls.between.get(part, call))
        made[part] = unpacker.call(call, as_layer(call, Ref(args[0].name), weight, None)[1])
    factors = (made["act"], made["up"])
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} is a product of two layers again",
        edits=(
            *unpacker.inserts,
            Retarget(node.name, aten.mul.Tensor, factors if calls.act_first else factors[::-1]),
            *unpacker.gone,
        ),
        state=StateTransform(unpacker.state),
        tolerance=proposal.tolerance,
    )
