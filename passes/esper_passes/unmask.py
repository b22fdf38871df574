"""The rewrites that take masks away: `ClearMask` and `FoldMask`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esper.ir.sparsity import masks
from esper.ir.weights import read_of
from esper.passbase import Rewrite
from esper.plan import Edit, Erase, Plan, Refusal, ReplaceUses, SetLife
from esper.propose import ClearMask, FoldMask, ProposalBase
from esper.state import Drop, Forget, Op, StateTransform

if TYPE_CHECKING:
    from esper.ir.model import Model


class ClearMaskRewrite(Rewrite):
    """The weight is read as it is; what was off counts again."""

    type: ClassVar[str] = "clear-mask"

    def plan(self, model: Model, proposal: ClearMask) -> Plan | Refusal:
        """Never refuses: the contract has seen that there is a mask."""
        return _without(model, proposal, proposal.tensor, f"clear the mask of {proposal.tensor}")


class FoldMaskRewrite(Rewrite):
    """What was off is zero in the weight, which is dense from now on: no kernel skips the zeros."""

    type: ClassVar[str] = "fold-mask"

    def plan(self, model: Model, proposal: FoldMask) -> Plan | Refusal:
        """Never refuses: the contract has seen that there is a mask."""
        name = proposal.tensor
        return _without(model, proposal, name, f"fold the mask of {name}: dense, with zeros")


def _without(model: Model, proposal: ProposalBase, tensor: str, summary: str) -> Plan:
    mask = masks(model)[tensor]
    nodes = model.nodes
    edits: list[Edit] = []
    for name in mask.reads:
        read = read_of(nodes[name])
        assert read is not None
        edits += [ReplaceUses(name, read.name), Erase(name)]
    edits += [Erase(read) for read in model.readers().get(mask.life.mask, ())]
    ops: dict[str, tuple[Op, ...]] = {mask.life.mask: (Drop(),)}
    if isinstance(proposal, FoldMask):
        ops[tensor] = (Forget(~mask.value, values=True),)
    return Plan(
        proposal=proposal,
        summary=summary,
        edits=tuple(edits),
        state=StateTransform(ops),
        lives=(SetLife(f"mask:{tensor}", None),),
        tolerance=proposal.tolerance,
        figures={"density": mask.density, "zeros": int((~mask.value).sum())},
    )
