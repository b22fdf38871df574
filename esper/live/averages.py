"""Averaged copies of the weights follow surgery by planning it on themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from esper.apply import Applier
from esper.contracts import check
from esper.errors import BoundaryError, UsageError
from esper.ir import shapes
from esper.ir.model import Model
from esper.passbase import rewrites
from esper.plan import Refusal

if TYPE_CHECKING:
    from esper.apply import Journal, Moved
    from esper.plan import Plan


class AverageFollower:
    """Keeps an averaged copy (`torch.optim.swa_utils.AveragedModel`, or a bare copy) in step.

    The same proposal is planned on the copy with the copy's own weights, so that a rewrite which
    preserves the function preserves that of the average too.
    """

    def __init__(self, model: Model, ema: torch.nn.Module) -> None:
        inner = ema.module if isinstance(ema, torch.optim.swa_utils.AveragedModel) else ema
        if not isinstance(inner, Model):
            raise UsageError(
                "ema must hold a copy of the traced model: AveragedModel(session_model) or a deep "
                f"copy, not {type(inner).__name__}"
            )
        self.model = model
        self.average = inner

    def check(self) -> None:
        """Raises BoundaryError unless names and shapes agree with the live model's."""
        own, live = (
            {name: tuple(t.shape) for name, t in m.all_tensors()}
            for m in (self.average, self.model)
        )
        if own != live:
            name = min(n for n in own.keys() | live.keys() if own.get(n) != live.get(n))
            raise BoundaryError(
                f"the averaged copy's {name} is {own.get(name)}, the model's {live.get(name)}"
            )

    def follow(self, plan: Plan, moved: Sequence[Moved], journal: Journal) -> None:
        """Plan the same proposal on the average and apply it within the same journal."""
        average = self.average
        average.payloads.update(self.model.payloads)
        average.ecology.tick = self.model.ecology.tick
        refusal = check(average, plan.proposal)
        own = refusal or rewrites()[plan.proposal.type].follow(average, plan)
        average.payloads.clear()
        if isinstance(own, Refusal):
            raise BoundaryError(f"the averaged copy cannot follow: {own.reason}")
        applier = Applier(average, journal)
        dirty = applier.apply(own)
        before: dict[str, object] = {}

        def undo() -> None:
            nodes = average.nodes
            for name, value in before.items():
                if name in nodes:
                    nodes[name].meta["val"] = value

        journal.add(undo)
        shapes.propagate(average, dirty, before)
        self.check()
