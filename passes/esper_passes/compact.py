"""The end of sparse training: units without weights are cut, masks that are left become zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.ir.emptied import unfed, unheard
from esper.ir.sparsity import masks
from esper.passbase import Context, Pass, Proposals, Remark
from esper.plan import Plan
from esper.propose import FoldMask, PruneUnits

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Compact(Pass):
    """Fold masks into their weights and cut the units that they left empty; the function stays."""

    name: ClassVar[str] = "compact"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"

    def propose(self, model: Model, context: Context) -> Proposals:
        """Masks first: then a unit that nothing feeds is seen to be constant."""
        found = masks(model)
        if not found:
            yield Remark(
                "analysis", "no-mask", "no weight has a mask", remedy="run sparsify before"
            )
            return
        silent, constant = unheard(model), unfed(model)
        for tensor in found:
            yield FoldMask(tensor=tensor, proposer=self.name)
        for axis, units in silent.items():
            yield PruneUnits(
                axis=axis, units=units, proposer=self.name, evidence={"outgoing_weights_on": 0}
            )
        for axis, units in constant.items():
            living = model.anatomy.axes.get(axis)
            if living is None:
                continue
            left = tuple(unit for unit in units if unit in living.unit_ids)
            left = left[: living.size - living.least]
            if not left:
                continue
            proposal = PruneUnits(
                axis=axis, units=left, fold_constants=True, proposer=self.name,
                evidence={"incoming_weights_on": 0},
            )  # fmt: skip
            plan = model.plan(proposal)
            folded = plan.figures.get("folded_units", []) if isinstance(plan, Plan) else []
            if folded:
                yield proposal.model_copy(update={"units": tuple(folded)})
            if len(folded) < len(left):
                yield Remark(
                    "missed",
                    "unknown-constant",
                    f"{len(left) - len(folded)} units of {axis} have no incoming weight, but what "
                    "they give cannot be moved into a bias",
                    axis,
                )
