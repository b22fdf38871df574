"""The rewrite behind `DequantizeLayers`: integers and scales become a floating parameter again.

A weight-only layer kept its op and reads the stored weight from now on. A layer of integers is
named by the last of its nodes, and a linear layer takes the place of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.ir.ancestors import ancestors
from esper.ir.dataflow import QUANTISED
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Ref, Refusal, ReplaceUses, SetArg
from esper.propose import DequantizeLayers
from esper.state import Create, Op, StateTransform
from esper_passes.editing import Inserter
from esper_passes.integer_layer import integer_layer
from esper_passes.liveness import drops, dying, erase, fresh, unread

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


@dataclass(frozen=True)
class _Wide:
    """A layer whose weight is made of integers at each call: where, by which node."""

    stored: str
    value: Tensor
    position: int
    node: fx.Node


@dataclass(frozen=True)
class _Product:
    """A product of integers as a linear layer: what it reads, and the node that reads its bias."""

    stored: str
    value: Tensor
    source: fx.Node
    bias: fx.Node | None


class DequantizeLayersRewrite(Rewrite):
    """The weight is computed once, as the layer computed it at every call, and stored."""

    type = "dequantize-layers"

    def plan(self, model: Model, proposal: DequantizeLayers) -> Plan | Refusal:
        """Refuses layers whose weight is not made of integers (`not-quantised`)."""
        taken = {name for name, _ in model.all_tensors()}
        ops: dict[str, tuple[Op, ...]] = {}
        edits: list[Edit] = []
        gone: set[fx.Node] = set()
        named: set[str] = set()
        replaced: dict[str, str] = {}
        for name in dict.fromkeys(proposal.nodes):
            node = model.nodes[name]
            found = _wide(model, node) or _product(model, node)
            if found is None:
                return Refusal(
                    "not-quantised",
                    f"%{name} has no weight that is kept as integers",
                    name,
                    "name a layer that was quantised; one of integers by its last node",
                )
            tensor = fresh(taken, found.stored.rpartition("_int")[0])
            taken.add(tensor)
            ops[tensor] = (Create(found.value.contiguous(), proposal.trainable),)
            insert = Inserter(model, node, named)
            read = insert.read(tensor, f"{name}_stored")
            if isinstance(found, _Wide):
                edits += [*insert.edits, SetArg(name, (found.position,), read)]
                gone.update(dying(model, [found.node]))
            else:
                source = replaced.get(found.source.name, found.source.name)
                bias = () if found.bias is None else (Ref(found.bias.name),)
                layer = insert.call(aten.linear.default, (Ref(source), read, *bias), f"{name}_wide")
                edits += [*insert.edits, ReplaceUses(name, layer.name)]
                replaced[name] = layer.name
                gone.update(set(dying(model, [node], keep=found.source)) - {found.bias})
            named |= {edit.name for edit in insert.edits}
        return Plan(
            proposal=proposal,
            summary=f"{len(ops)} weights of %{proposal.nodes[0]} in floating point",
            edits=(*edits, *erase(gone)),
            state=StateTransform({**ops, **drops(unread(model, gone))}),
            tolerance="lossy",
            figures={"layers": len(ops)},
        )


def _wide(model: Model, node: fx.Node) -> _Wide | None:
    if node.target is aten._int_mm.default:
        return None
    for position, operand in enumerate(node.args):
        if not isinstance(operand, fx.Node) or list(operand.users) != [node]:
            continue
        stored = _integers(model, operand)
        if stored and not _integers(model, node):  # else it is a step on the way to the weight
            return _Wide(stored, _compute(model, operand), position, operand)
    return None


def _product(model: Model, end: fx.Node) -> _Product | None:
    found = integer_layer(end)
    if found is None:
        return None
    stored = str(found.values.target)
    values, scales = model.tensor(stored), model.tensor(str(found.scale.target))
    assert values is not None
    assert scales is not None
    wide = (values * scales[:, None]).to(end.meta["val"].dtype)
    return _Product(stored, wide, found.x, found.bias)


def _integers(model: Model, node: fx.Node) -> str:
    """Name of the integers that a node is made of, where it depends on no input; else empty."""
    behind = ancestors([node])
    if any(n.op not in ("get_attr", "call_function") for n in behind):
        return ""
    reads = (str(n.target) for n in sorted(behind) if n.op == "get_attr")
    return next((name for name in reads if name.endswith(QUANTISED)), "")


def _compute(model: Model, node: fx.Node) -> Tensor:
    values: dict[fx.Node, Any] = {}
    for each in sorted(ancestors([node])):
        if each.op == "get_attr":
            values[each] = model.tensor(str(each.target))
        else:
            args, kwargs = fx.map_arg((each.args, each.kwargs), values.__getitem__)
            values[each] = each.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = values[node].detach()
    return result
