"""The rewrite behind `RegrowMask`: RigL within a pattern."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch

from esper.ir.sparsity import Mask, masks
from esper.passbase import Rewrite
from esper.plan import Plan, Refusal
from esper.propose import RegrowMask
from esper_passes.masking import given, payload, set_anew
from esper_passes.set_mask import broken

if TYPE_CHECKING:
    from esper.ir.model import Model


class RegrowMaskRewrite(Rewrite):
    """Cells of least magnitude go off, those with the largest gradient come on; as many of each."""

    type: ClassVar[str] = "regrow-mask"

    def plan(self, model: Model, proposal: RegrowMask) -> Plan | Refusal:
        """Refuses without gradients (`missing-payload`), with a mask that a cut left without its
        pattern (`pattern-broken`), and where the fraction is less than a cell (`too-few-cells`).
        """
        mask = masks(model)[proposal.tensor]
        if not mask.intact:
            return broken(proposal.tensor)
        weight = model.get_parameter(proposal.tensor).detach()
        pattern = mask.pattern
        on = pattern.on(mask.value)
        if proposal.grow == "random":
            generator = torch.Generator().manual_seed(proposal.seed)
            growth = torch.rand(on.shape, generator=generator, dtype=torch.float64).to(on.device)
        else:
            scores = payload(model, proposal.gradient, proposal.tensor)
            if isinstance(scores, Refusal):
                return scores
            growth = pattern.cells(scores.to(weight.device, torch.float64).abs())
        fraction = self.fraction(proposal, model.ecology.tick)
        count = int(fraction * int(on.sum()))
        if count == 0:
            return Refusal(
                "too-few-cells",
                f"{fraction:.3g} of {int(on.sum())} cells of {proposal.tensor} is less than one",
                proposal.tensor,
                "a larger fraction",
            )
        worth = pattern.cells(weight.double().abs().where(mask.value, 0.0))
        new = swapped(on, worth, growth, count)
        value = pattern.spread(new, tuple(weight.shape))
        figures = {"fraction": fraction, "cells_changed": int((new & ~on).sum())}
        return self._set(model, proposal, mask, value, figures)

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """A copy takes the mask of the live model."""
        proposal = plan.proposal
        assert isinstance(proposal, RegrowMask)
        mask = masks(model)[proposal.tensor]
        value = given(plan, mask.life)
        return self._set(model, proposal, mask, mask.value if value is None else value, {})

    @staticmethod
    def fraction(proposal: RegrowMask, tick: int) -> float:
        """Share of live cells that change at a tick: cosine decay to zero at `until`."""
        if not proposal.until:
            return proposal.fraction
        return proposal.fraction / 2 * (1 + math.cos(math.pi * tick / proposal.until))

    def _set(
        self,
        model: Model,
        proposal: RegrowMask,
        mask: Mask,
        value: torch.Tensor,
        figures: dict[str, float],
    ) -> Plan:
        life = mask.life.model_copy(update={"regrown": mask.life.regrown + 1})
        changed = int(figures.get("cells_changed", 0))
        summary = f"regrow {proposal.tensor} ({mask.life.pattern}): {changed} cells anew"
        return set_anew(model, proposal, life, value, summary, figures, mask)


def swapped(
    on: torch.Tensor, worth: torch.Tensor, growth: torch.Tensor, count: int
) -> torch.Tensor:
    """Cells after `count` of least worth went off and as many others grew, (groups, cells).

    With one group a cell that just went off may grow again, as in RigL. With several, one cell of a
    group gives way to one that was off: where the least live cell is worth least.
    """
    inf = float("inf")
    new = on.clone()
    if len(on) == 1:
        count = min(count, int(on.sum()))
        least = torch.argsort(worth[0].where(on[0], inf), stable=True)[:count]
        new[0, least] = False
        most = torch.argsort(growth[0].where(~new[0], -inf), descending=True, stable=True)[:count]
        new[0, most] = True
        return new
    lowest, cell = worth.where(on, inf).min(1)
    groups = torch.argsort(lowest, stable=True)[:count]
    new[groups, cell[groups]] = False
    new[groups, growth[groups].where(~on[groups], -inf).argmax(1)] = True
    return new
