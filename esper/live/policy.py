"""State policies: what optimizer state does when its parameter changes shape or value."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Moments = Literal["keep", "zero", "asymmetric"]


class StatePolicy(BaseModel):
    """What happens to the optimizer state of the tensors that a rewrite touches.

    Attributes:
        moments: `keep` moves it as the weights move; a new unit inherits from the unit that it was
            copied from, or starts without a first moment and with the average second moment of
            the old units. `asymmetric` keeps that of old units and gives copies none of their
            parent's first moment, so that they part ways (SPARKLING, arXiv:2602.02472).
            `zero` forgets all of it, the step count too, which keeps Adam's bias correction
            consistent: moments at zero under an old count make steps too large by
            (1 - beta1) / sqrt(1 - beta2).
        warmup: optimizer steps over which the updates of touched tensors ramp up from zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    moments: Moments = "keep"
    warmup: int = Field(default=0, ge=0)

    def text(self) -> str:
        """`keep`, `zero + 50 steps of warm-up`."""
        return f"{self.moments} + {self.warmup} steps of warm-up" if self.warmup else self.moments
