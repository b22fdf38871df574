"""The rewrites behind `SetMask` and `GateCells`: masks chosen by scores, or cell by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from esper.ir.ecology import Sparsity
from esper.ir.patterns import Pattern
from esper.ir.sparsity import contracted_dim, masks, owner
from esper.passbase import Rewrite
from esper.plan import Plan, Refusal
from esper.propose import GateCells, SetMask
from esper_passes.liveness import fresh
from esper_passes.masking import given, payload, set_anew

if TYPE_CHECKING:
    from esper.ir.model import Model


class SetMaskRewrite(Rewrite):
    """Reads of the weight go through `where(mask, weight, 0)`."""

    type: ClassVar[str] = "set-mask"

    def plan(self, model: Model, proposal: SetMask) -> Plan | Refusal:
        """Refuses scores that are not in memory (`missing-payload`), and NaN (`no-order`)."""
        weight = model.get_parameter(proposal.tensor).detach()
        before = masks(model).get(proposal.tensor)
        if proposal.scores:
            scores = payload(model, proposal.scores, proposal.tensor)
            if isinstance(scores, Refusal):
                return scores
        else:
            off = weight.new_zeros(())
            scores = weight.abs() if before is None else weight.abs().where(before.value, off)
        if bool(torch.isnan(scores).any()):
            return Refusal(
                "no-order", f"scores of {proposal.tensor} hold NaN", proposal.tensor, "train on"
            )
        pattern = self._pattern(model, proposal)
        wide = scores.to(weight.device, torch.float64)
        on = pattern.choose(pattern.cells(wide))
        mask = pattern.spread(on, tuple(weight.shape))
        total = float(wide.sum())
        kept = float(wide[mask].sum()) / total if total > 0 else 1.0
        return self._set(model, proposal, mask, {"share_of_scores_kept": kept})

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """A copy takes the mask of the live model, whatever its own weights would choose."""
        proposal = plan.proposal
        assert isinstance(proposal, SetMask)
        before = masks(model).get(proposal.tensor)
        mask = given(plan, None if before is None else before.life)
        if mask is None:
            assert before is not None
            mask = before.value
        return self._set(model, proposal, mask, {})

    def _pattern(self, model: Model, proposal: SetMask) -> Pattern:
        dim = contracted_dim(model, proposal.tensor) if proposal.dim is None else proposal.dim
        return Pattern.parse(proposal.pattern, proposal.density, dim)

    def _set(
        self, model: Model, proposal: SetMask, mask: torch.Tensor, figures: dict[str, float]
    ) -> Plan:
        before = masks(model).get(proposal.tensor)
        known = {name for name, _ in model.all_tensors()}
        name = fresh(known, f"{proposal.tensor}_mask") if before is None else before.life.mask
        life = Sparsity(
            tensor=proposal.tensor,
            mask=name,
            pattern=proposal.pattern,
            density=proposal.density,
            dim=self._pattern(model, proposal).dim,
            owner=owner(model, proposal.tensor),
            since=model.ecology.tick,
        )
        summary = f"mask {proposal.tensor} by {proposal.pattern}"
        return set_anew(model, proposal, life, mask, summary, figures, before)


class GateCellsRewrite(Rewrite):
    """Cells go on and off one by one."""

    type: ClassVar[str] = "gate-cells"

    def plan(self, model: Model, proposal: GateCells) -> Plan | Refusal:
        """Refuses cells that are not there or are so already (`unknown-cell`), a mask that a cut
        left without its pattern, and a change that would (`pattern-broken`).
        """
        mask = masks(model)[proposal.tensor]
        if not mask.intact:
            return broken(proposal.tensor)
        pattern = mask.pattern
        cells = pattern.on(mask.value)
        flat = cells.flatten().clone()
        for numbers, wanted in ((proposal.off, False), (proposal.on, True)):
            for number in numbers:
                if not 0 <= number < flat.numel() or bool(flat[number]) is wanted:
                    what = "on already" if wanted else "off already"
                    what = what if 0 <= number < flat.numel() else f"not one of {flat.numel()}"
                    return Refusal(
                        "unknown-cell",
                        f"cell {number} of {proposal.tensor} is {what}",
                        proposal.tensor,
                        "see Pattern.on of the mask",
                    )
                flat[number] = wanted
        on = flat.reshape(cells.shape)
        value = pattern.spread(on, tuple(mask.value.shape))
        if not pattern.fits(value):
            return Refusal(
                "pattern-broken",
                f"a group of {proposal.tensor} would not have {mask.life.pattern} any more",
                proposal.tensor,
                "turn as many cells of a group on as off",
            )
        summary = (
            f"{len(proposal.off)} cells of {proposal.tensor} off, {len(proposal.on)} on "
            f"({mask.life.pattern})"
        )
        return set_anew(model, proposal, mask.life, value, summary, {}, mask)


def broken(tensor: str) -> Refusal:
    """A mask without its pattern."""
    return Refusal(
        "pattern-broken",
        f"the mask of {tensor} has lost its pattern by a cut or growth",
        tensor,
        "propose set-mask again",
    )
