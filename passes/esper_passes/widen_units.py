"""The rewrite behind `WidenUnits`: new units in everything that holds the axis.

Growing and then cutting the same units restores every tensor bit for bit, except with `net2net`,
which moves a share of old weights to the copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from esper.ir.terms import atoms_of, kept_index, size_of, unit_index
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, SetArg, UnitGrowth
from esper.propose import WidenUnits
from esper.state import Grow, Op, Patch, StateTransform
from esper_passes.growth_init import drawn, share

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

aten = torch.ops.aten
# Contractions, the operand that is a weight, and the weight's dim that is contracted.
_WEIGHTS: dict[Any, tuple[int, int]] = {
    aten.linear.default: (1, 1),
    aten.matmul.default: (1, -2),
    aten.mm.default: (1, -2),
    aten.bmm.default: (1, -2),
    aten.addmm.default: (2, -2),
    **{getattr(aten, f"conv{n}d").default: (1, 1) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 1) for n in (1, 2, 3)},
}
Place = tuple[str, int]  # tensor, dim


@dataclass(frozen=True)
class _Layout:
    """Where positions go along one dim of one tensor.

    Attributes:
        places: new place of each old position.
        new: places that are new.
        sources: old position that each new one stands for, if units are copied.
        parents: new place of each of those positions.
    """

    places: IntArray
    new: IntArray
    sources: IntArray
    parents: IntArray


class WidenUnitsRewrite(Rewrite):
    """Tensors grow along every dimension that holds the axis, literal sizes follow."""

    type = "widen-units"

    def plan(self, model: Model, proposal: WidenUnits) -> Plan | Refusal:
        """Refuses where the new units could not be kept out of the function (see `_outgoing`)."""
        table, axis = model.table, model.anatomy.axes[proposal.axis]
        outgoing = _outgoing(model, axis)
        if isinstance(outgoing, Refusal):
            return outgoing
        if proposal.init == "net2net" and proposal.count > axis.size:
            return Refusal(
                "too-many-copies",
                f"{proposal.count} copies of {axis.size} units would share parents",
                axis.id,
                "widen in several steps",
            )
        generator = torch.Generator().manual_seed(proposal.seed)
        chosen = torch.randperm(axis.size, generator=generator)
        sources = chosen.repeat(-(-proposal.count // axis.size))[: proposal.count].numpy()
        larger = {**table.sizes, axis.atom: axis.size + proposal.count}
        ops: dict[str, tuple[Op, ...]] = {}
        added = 0
        for name in table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            assert tensor is not None
            before = tensor.numel()
            grown: list[Op] = []
            value = tensor.detach()
            for dim, term in enumerate(table.tensors[name]):
                if axis.atom not in atoms_of(term):
                    continue
                gather = np.concatenate([np.arange(axis.size), sources])
                owners = unit_index(term, axis.atom, larger)
                layout = _layout(kept_index(term, {axis.atom: gather}, table.sizes), owners, axis)
                made = _grow(value, dim, layout, proposal, (name, dim) in outgoing, generator)
                for op in made:
                    value = op(value)
                grown += made
            ops[name] = tuple(grown)
            added += value.numel() - before
        edits: list[Edit] = [
            SetArg(literal.node, literal.path, sum(size_of(term, larger) for term in literal.terms))
            for literal in table.literals_of.get(axis.atom, ())
        ]
        return Plan(
            proposal=proposal,
            summary=f"add {proposal.count} units to the {axis.size} of {axis.id} ({proposal.init})",
            edits=tuple(edits),
            state=StateTransform(ops),
            growths=(UnitGrowth(axis.id, proposal.count),),
            tolerance=proposal.tolerance,
            figures={
                "units": proposal.count,
                "units_before": axis.size,
                "parameters_added": added,
            },
        )


def _layout(gather: IntArray, owners: IntArray, axis: Axis) -> _Layout:
    is_new = owners >= axis.size
    new, places = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    sources = gather[new]
    return _Layout(places, new, sources, places[sources])


def _grow(
    value: torch.Tensor,
    dim: int,
    layout: _Layout,
    proposal: WidenUnits,
    outgoing: bool,
    generator: torch.Generator,
) -> list[Grow | Patch]:
    """Operations on one dim of one tensor."""
    index = torch.from_numpy(layout.sources).to(value.device)
    places = tuple(layout.places.tolist())
    copies = value.index_select(dim, index)
    if proposal.init == "net2net":
        sources = tuple(layout.sources.tolist())
        if not outgoing:
            return [Grow(dim, places, copies, sources)]
        part = share(copies, generator)
        parents = tuple(layout.parents.tolist())
        return [Grow(dim, places, part, sources), Patch(dim, parents, copies - part)]
    if not value.is_floating_point():
        return [Grow(dim, places, copies)]
    if outgoing and proposal.init == "zero":
        return [Grow(dim, places, torch.zeros_like(copies))]
    return [Grow(dim, places, drawn(value, copies, dim, generator))]


def _outgoing(model: Model, axis: Axis) -> set[Place] | Refusal:
    """Dims of weights through which the units act on what follows.

    Only where every consumer is a contraction with a weight can weights decide what new units do.
    """
    nodes, table = model.nodes, model.table
    names = model.canonical_names()
    uses = table.uses_of.get(axis.atom, ())
    found: dict[Place, set[str]] = {}
    for use in uses:
        node = nodes[use.node]
        operand, dim = _WEIGHTS.get(node.target, (-1, 0))
        weight = node.args[operand] if operand >= 0 else None
        reads = isinstance(weight, fx.Node) and weight.op == "get_attr"
        if use.kind != "zero" or not reads:
            return Refusal(
                "no-outgoing-weight",
                f"units of {axis.id} are consumed at %{node.name} ({node.target}) without a weight "
                "that could keep new ones out of the function",
                node.name,
                "widen an axis that linear layers or convolutions read",
            )
        assert isinstance(weight, fx.Node)
        name = names[str(weight.target)]
        place = (name, dim % weight.meta["val"].ndim)
        if axis.atom not in atoms_of(table.tensors[name][place[1]]):
            return Refusal(
                "no-outgoing-weight",
                f"%{node.name} reads units of {axis.id} in another dimension of {name}",
                node.name,
            )
        found.setdefault(place, set()).add(node.name)
    if not found:
        return Refusal("no-outgoing-weight", f"nothing reads the units of {axis.id}", axis.id)
    for (name, _), readers in found.items():
        for reader in model.readers().get(name, ()):
            others = {user.name for user in nodes[reader].users} - readers
            if others:
                return Refusal(
                    "shared-tensor",
                    f"{name} serves %{min(others)} too, which the new units would reach",
                    min(others),
                    "untie the tensor before",
                )
    return set(found)
