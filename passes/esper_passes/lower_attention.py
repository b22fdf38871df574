"""The rewrite behind `LowerAttentionProjections`: three layers in one op, on one weight."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx

from esper.ir.origin import Origin
from esper.passbase import Rewrite
from esper.plan import Plan, Ref, Refusal, Retarget
from esper.propose import LowerAttentionProjections
from esper.state import Drop, Join, Op, StateTransform
from esper_passes.attention import Projection, projections
from esper_passes.editing import occupied
from esper_passes.kernel_ops import ops as kernels
from esper_passes.liveness import dying, erase
from esper_passes.lowerable import origins

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_MOVES = (
    aten.transpose.int, aten.permute.default, aten.select.int, aten.slice.Tensor,
    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.alias.default,
    aten.detach.default,
)  # fmt: skip


class LowerAttentionProjectionsRewrite(Rewrite):
    """The node of the queries' layer calls the kernel; nodes laid out by heads take its results.

    Weight and bias of the queries take those of keys and values behind them.
    """

    type = "lower-attention-projections"

    def plan(self, model: Model, proposal: LowerAttentionProjections) -> Plan | Refusal:
        """Refuses other layers (`no-projections`)."""
        node = model.nodes[proposal.node]
        found = projections(model, node)
        if found is None:
            return Refusal(
                "no-projections",
                f"%{node.name} is not the first of three layers that read one value and are laid "
                "out by heads",
                node.name,
                "name the layer of the queries",
            )
        q, k, v = found.parts
        if (viewed := _viewed([part.turned for part in found.parts])) is not None:
            return Refusal(
                "viewed",
                f"%{viewed.name} views what %{node.name} and its neighbours compute with the "
                "sequence before the heads, and the kernel writes heads first",
                node.name,
                "write reshape in place of view",
            )
        inner = [q.view, k.layer.node, k.view, v.layer.node, v.view]
        if (place := occupied(model, [node, *inner])) is not None:
            return place
        _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the three layers
        names, state = model.canonical_names(), dict[str, tuple[Op, ...]]()
        for own, *others in zip(*(_tensors(names, part) for part in found.parts), strict=True):
            state[own] = (Join(tuple(others)),)
            state |= {name: (Drop(),) for name in others}
        bias = None if q.layer.bias is None else Ref(q.layer.bias.name)
        args = (Ref(q.layer.x.name), Ref(q.layer.read.name), bias, q.heads, k.heads, q.size)
        origin = tuple(call for part in found.parts for call in _calls(names, part))
        takes = [
            Retarget(part.turned.name, operator.getitem, (Ref(node.name), number))
            for number, part in enumerate(found.parts)
        ]
        return Plan(
            proposal=proposal,
            summary=f"%{node.name} computes with esper::attention_projections",
            edits=(
                Retarget(node.name, kernels.attention_projections.default, args, origin),
                *takes,
                *erase(dying(model, inner, keep=node)),
            ),
            state=StateTransform(state),
            tolerance=proposal.tolerance,
            figures={"heads": q.heads, "kv_heads": k.heads, "head_size": q.size},
        )


def _viewed(values: list[fx.Node]) -> fx.Node | None:
    """A `view` of the values whose dims were moved meanwhile: their strides will be others."""
    moved = {
        user for value in values for user in value.users if user.target in _MOVES
    }  # fmt: skip
    found = [user for each in moved for user in each.users if user.target is aten.view.default]
    return min(found) if found else _viewed(list(moved)) if moved else None


def _tensors(names: dict[str, str], part: Projection) -> list[str]:
    """First names of weight and bias."""
    reads = [part.layer.read, *([] if part.layer.bias is None else [part.layer.bias])]
    return [names[str(read.target)] for read in reads]


def _calls(names: dict[str, str], part: Projection) -> list[Origin]:
    """What is remembered of one projection: layer, view, and the swap of its dims."""
    layer, *rest = origins(part.layer.node, part.view, part.turned)
    return [layer._replace(tensors=tuple(_tensors(names, part))), *rest]
