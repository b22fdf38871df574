"""The rewrite behind `PruneUnits`: cut units of one axis out of everything that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from esper.ir.terms import atoms_of, kept_index, size_of
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, SetArg, UnitCut
from esper.propose import PruneUnits
from esper.state import Op, Select, StateTransform
from esper_passes import constants

if TYPE_CHECKING:
    from esper.ir.model import Model


class PruneUnitsRewrite(Rewrite):
    """Tensors are indexed along every dimension that holds the axis, literal sizes follow."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        table, axis = model.table, model.anatomy.axes[proposal.axis]
        gone = sorted(axis.positions(proposal.units))
        keep = {axis.atom: np.setdiff1d(np.arange(axis.size), gone)}
        ops: dict[str, tuple[Op, ...]] = {}
        before = after = 0
        for name in table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            assert tensor is not None
            selects: list[Op] = []
            kept = tensor.numel()
            for dim, term in enumerate(table.tensors[name]):
                if axis.atom in atoms_of(term):
                    index = kept_index(term, keep, table.sizes)
                    selects.append(Select(dim, tuple(index.tolist())))
                    kept = kept // tensor.shape[dim] * len(index)
            ops[name] = tuple(selects)
            before += tensor.numel()
            after += kept
        smaller = {**table.sizes, axis.atom: axis.size - len(gone)}
        edits: list[Edit] = [
            SetArg(
                literal.node,
                literal.path,
                sum(size_of(term, smaller) for term in literal.terms),
            )
            for literal in table.literals_of.get(axis.atom, ())
        ]
        folded: list[int] = []
        if proposal.fold_constants:
            biases = constants.folded_biases(model, axis, gone)
            folded = [axis.unit_ids[i] for i in biases.units]
            for name, op in biases.ops.items():
                ops[name] = (op, *ops.get(name, ()))
            edits += biases.edits
        return Plan(
            proposal=proposal,
            summary=f"cut {len(gone)} of {axis.size} units of {axis.id}",
            edits=tuple(edits),
            state=StateTransform(ops),
            cuts=(UnitCut(axis.id, tuple(gone)),),
            tolerance="exact" if axis.lossy_reason is None else "lossy",
            figures={
                "units": len(gone),
                "units_before": axis.size,
                "parameters_removed": before - after,
                **({"folded_units": folded} if folded else {}),
            },
        )
