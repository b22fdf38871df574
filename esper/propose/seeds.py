"""Proposals for seeds: plant one in a slot, move it on through its stages, take it out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esper.ir.ecology import Blend
from esper.propose.base import ProposalBase

Option = bool | int | float | str


class PlantSeed(ProposalBase):
    """Put a seed into a slot; the host's function and gradients stay bit for bit.

    Attributes:
        slot: slot ID.
        blueprint: name in the table of blueprints (`esper.register_blueprint`).
        options: of the blueprint; those left out have its defaults.
        seed: of all that is drawn.
        behind: the seed trains on a detached input, so nothing that it does reaches the host.
            Otherwise the host also receives the gradient that flows back through the seed.
        blend: how the seed comes in once it blends.
    """

    type: Literal["plant-seed"] = "plant-seed"
    slot: str
    blueprint: str
    options: dict[str, Option] = Field(default_factory=dict)
    seed: int = 0
    behind: bool = True
    blend: Blend = Field(default_factory=Blend)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.slot,)


class AdvanceSeed(ProposalBase):
    """Move the seed of a slot to its next stage.

    Attributes:
        slot: slot ID.
        to: `blending` from incubating, or from holding with a blend that leads out again;
            `holding` from blending; `committed` from holding.
        blend: takes the place of the planted one, with the same algorithm.
    """

    type: Literal["advance-seed"] = "advance-seed"
    slot: str
    to: Literal["blending", "holding", "committed"]
    blend: Blend | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.slot,)


class CullSeed(ProposalBase):
    """Take a seed that is not committed out of its slot, which rests for a while.

    Attributes:
        slot: slot ID.
        reason: one sentence for the record.
        quarantine: ticks during which nothing is planted there.
    """

    type: Literal["cull-seed"] = "cull-seed"
    slot: str
    reason: str = ""
    quarantine: int = Field(default=50, ge=0)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.slot,)
