"""The rewrite behind `WidenUnits`: new units in everything that holds the axis.

Growing and then cutting the same units restores every tensor bit for bit, with two exceptions that
touch old weights: `net2net`, which moves a share of them to the copies (`MergeUnits` gives it back,
bit for bit), and whatever rescales (`rms`, and an axis whose norms are compensated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from esper.ir.terms import atoms_of, size_of
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, SetArg, UnitGrowth
from esper.propose import WidenUnits
from esper.propose.base import Tolerance
from esper.propose.growth import Init
from esper.state import Create, Op, StateTransform
from esper_passes.filling import Filling, How, Layout, filled
from esper_passes.gradmax import solved_rows
from esper_passes.growth_mask import masks
from esper_passes.outgoing import Place, outgoing
from esper_passes.widen_stream import stream

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

_LARGEST = 2**31  # elements of a grown tensor; more is a slip of the pen, not a wish

# What comes into new units, and what goes out of them.
_RECIPES: dict[Init, tuple[How, How]] = {
    "zero": ("drawn", "zero"),
    "net2net": ("copy", "share"),
    "random": ("drawn", "drawn"),
    "masked": ("drawn", "drawn"),
    "rms": ("drawn", "drawn"),
    "gradmax": ("solved", "zero"),
}


@dataclass
class Recipe:
    """How each place is filled, and what else changes.

    Attributes:
        fillings: by (tensor, dim); places that are not named are drawn.
        edits: literals beside sizes that change.
        tolerance: of the result.
        note: what the plan says beside the counts.
    """

    fillings: dict[Place, Filling]
    default: Filling
    edits: list[Edit] = field(default_factory=list)
    tolerance: Tolerance = "reassociates"
    note: str = ""


class WidenUnitsRewrite(Rewrite):
    """Tensors grow along every dimension that holds the axis, literal sizes follow."""

    type = "widen-units"

    def plan(self, model: Model, proposal: WidenUnits) -> Plan | Refusal:
        """Refuses where new units could not be kept out of the function (see `outgoing`)."""
        table, axis = model.table, model.anatomy.axes[proposal.axis]
        oversized = _oversized(model, axis, proposal.count)
        if oversized is not None:
            return oversized
        generator = torch.Generator().manual_seed(proposal.seed)
        sources = _sources(axis, proposal, generator)
        if isinstance(sources, Refusal):
            return sources
        recipe = _recipe(model, axis, proposal)
        if isinstance(recipe, Refusal):
            return recipe
        solved = solved_rows(model, axis, proposal) if proposal.init == "gradmax" else {}
        if isinstance(solved, Refusal):
            return solved
        trained = {name for name, _ in model.named_parameters()}
        ops: dict[str, tuple[Op, ...]] = {}
        added = 0
        for name in table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            assert tensor is not None
            value = tensor.detach()
            grown: list[Op] = []
            for dim, term in enumerate(table.tensors[name]):
                if axis.atom not in atoms_of(term):
                    continue
                layout = Layout.of(axis, term, sources, table.sizes)
                filling = recipe.fillings.get((name, dim), recipe.default)
                if name not in trained:
                    filling = Filling("copy")  # statistics and tables: drawn ones mean nothing
                elif filling.how == "solved" and name not in solved:
                    filling = Filling("zero")
                for op in filled(value, dim, layout, filling, generator, solved.get(name)):
                    value = op(value)
                    grown.append(op)
            ops[name] = tuple(grown)
            added += value.numel() - tensor.numel()
        larger = {**table.sizes, axis.atom: axis.size + proposal.count}
        edits: list[Edit] = [
            SetArg(literal.node, literal.path, sum(size_of(term, larger) for term in literal.terms))
            for literal in table.literals_of.get(axis.atom, ())
        ]
        edits += recipe.edits
        if proposal.init == "masked":
            behind = masks(model, axis, proposal.count)
            if isinstance(behind, Refusal):
                return behind
            edits += behind.edits
            ops |= {name: (Create(mask, trainable=False),) for name, mask in behind.buffers.items()}
        parents = [axis.unit_ids[i] for i in sources] if proposal.init == "net2net" else []
        return Plan(
            proposal=proposal,
            summary=f"add {proposal.count} units to the {axis.size} of {axis.id} ({proposal.init}"
            f"{recipe.note})",
            edits=tuple(edits),
            state=StateTransform(ops),
            growths=(UnitGrowth(axis.id, proposal.count),),
            tolerance=recipe.tolerance,
            figures={
                "units": proposal.count,
                "units_before": axis.size,
                "parameters_added": added,
                **({"parents": parents} if parents else {}),
            },
        )


def _oversized(model: Model, axis: Axis, count: int) -> Refusal | None:
    """Asked before anything is allocated: a process that is out of memory refuses nothing."""
    table = model.table
    larger = {**table.sizes, axis.atom: axis.size + count}
    for name in table.tensors_of.get(axis.atom, ()):
        elements = math.prod(size_of(term, larger) for term in table.tensors[name])
        if elements > _LARGEST:
            return Refusal(
                "too-many-units",
                f"{count} more units of {axis.id} would make {name} a tensor of {elements:,} "
                f"elements, more than {_LARGEST:,}",
                axis.id,
                "grow by fewer units",
            )
    return None


def _sources(axis: Axis, proposal: WidenUnits, generator: torch.Generator) -> IntArray | Refusal:
    """Positions of the units that new ones stand for."""
    if proposal.sources and len(proposal.sources) != proposal.count:
        return Refusal(
            "too-few-sources",
            f"{len(proposal.sources)} units are named for {proposal.count} copies",
            axis.id,
            "name one unit for each copy",
        )
    if proposal.sources:
        return np.array(axis.positions(proposal.sources), dtype=np.int64)
    chosen = torch.randperm(axis.size, generator=generator)
    sources: IntArray = chosen.repeat(-(-proposal.count // axis.size))[: proposal.count].numpy()
    return sources


def _recipe(model: Model, axis: Axis, proposal: WidenUnits) -> Recipe | Refusal:
    if axis.lossy_reason is not None:
        found = stream(model, axis, proposal)
        if isinstance(found, Refusal):
            return found
        return Recipe(found.fillings, Filling(), found.edits, found.tolerance, found.note)
    acting = outgoing(model, axis)
    if isinstance(acting, Refusal):
        return acting
    if proposal.init == "net2net" and not acting.linear:
        return Refusal(
            "no-share",
            f"units of {axis.id} act on what follows through a nonlinearity, which has no shares",
            axis.id,
            "use init zero",
        )
    come, go = _RECIPES[proposal.init]
    scale = 1.0
    if proposal.init == "rms":
        scale = float(np.sqrt(axis.size / (axis.size + proposal.count)))
    fillings = {
        place: Filling(come, go, positions, acts=True, scale=scale)
        for place, positions in acting.places.items()
    }
    return Recipe(fillings, Filling(come), tolerance=proposal.tolerance)
