"""Proposals that grow: more units on an axis."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esper.propose.base import ProposalBase, Tolerance

Init = Literal["zero", "net2net", "random"]


class WidenUnits(ProposalBase):
    """Add units to an axis, in every tensor that holds it. They come last and get new numbers.

    Attributes:
        axis: axis ID.
        count: how many.
        init: `zero`: what comes into a unit is drawn with the spread of the units that are there,
            what goes out is zero, so the function stays. `net2net`: copies of units, whose outgoing
            weights are split unequally between original and copy, so the function stays and the
            two part ways (Chen, Goodfellow and Shlens, arXiv:1511.05641). `random`: both sides
            drawn with the spread that is there; the function changes.
        seed: of all that is drawn.
    """

    type: Literal["widen-units"] = "widen-units"
    axis: str
    count: int = Field(ge=1)
    init: Init = "zero"
    seed: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy" if self.init == "random" else "reassociates"
