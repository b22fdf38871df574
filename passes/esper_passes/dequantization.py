"""The rewrite behind `DequantizeLayers`: integers and scales become a floating parameter again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.ir.ancestors import ancestors
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, SetArg
from esper.propose import DequantizeLayers
from esper.state import Create, Op, StateTransform
from esper_passes.editing import Inserter
from esper_passes.liveness import drops, dying, erase, fresh, unread

if TYPE_CHECKING:
    from esper.ir.model import Model

_SMALL = (torch.int8, torch.uint8)


class DequantizeLayersRewrite(Rewrite):
    """The weight is computed once, as the layer computed it at every call, and stored."""

    type = "dequantize-layers"

    def plan(self, model: Model, proposal: DequantizeLayers) -> Plan | Refusal:
        """Refuses layers whose weight is not made of integers (`not-quantised`)."""
        taken = {name for name, _ in model.all_tensors()}
        ops: dict[str, tuple[Op, ...]] = {}
        edits: list[Edit] = []
        abandoned: list[fx.Node] = []
        nodes = model.nodes
        for name in dict.fromkeys(proposal.nodes):
            node = nodes[name]
            found = _weight(model, node)
            if found is None:
                return Refusal(
                    "not-quantised",
                    f"%{name} has no weight that is kept as integers",
                    name,
                    "name a layer that was quantised with a weight-only mode",
                )
            position, wide, stored = found
            tensor = fresh(taken, stored.rpartition("_int")[0])
            taken.add(tensor)
            ops[tensor] = (Create(_compute(model, wide).contiguous(), proposal.trainable),)
            insert = Inserter(model, node, {edit.name for edit in edits if hasattr(edit, "name")})
            read = insert.read(tensor, f"{name}_weight")
            edits += [*insert.edits, SetArg(name, (position,), read)]
            abandoned.append(wide)
        gone = dying(model, abandoned)
        return Plan(
            proposal=proposal,
            summary=f"{len(abandoned)} weights of %{proposal.nodes[0]} in floating point",
            edits=(*edits, *erase(gone)),
            state=StateTransform({**ops, **drops(unread(model, gone))}),
            tolerance="lossy",
            figures={"layers": len(abandoned)},
        )


def _weight(model: Model, node: fx.Node) -> tuple[int, fx.Node, str] | None:
    """(argument position, the node that makes the weight, name of the integers)."""
    for position, operand in enumerate(node.args):
        if not isinstance(operand, fx.Node) or list(operand.users) != [node]:
            continue
        behind = ancestors([operand])
        if any(n.op not in ("get_attr", "call_function") for n in behind):
            continue
        for read in sorted(n for n in behind if n.op == "get_attr"):
            tensor = model.tensor(str(read.target))
            if tensor is not None and tensor.dtype in _SMALL and "_int" in str(read.target):
                return position, operand, str(read.target)
    return None


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
