"""Proposals of decay: sedation, what probes found, removal, and the immune ledger.

A target is a region (`phage:...`), or an axis (`axis:...`) of which some units are meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from esper.propose.base import ProposalBase, Tolerance
from esper.propose.structure import DropRegion, PruneUnits


class _OfPart(ProposalBase):
    target: str
    units: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _names_units(self) -> Self:
        if self.target.startswith("axis:") != bool(self.units):
            raise ValueError("units are named of an axis, and of nothing else")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def removal(self) -> PruneUnits | DropRegion:
        """The change that takes the same part away."""
        if self.units:
            return PruneUnits(axis=self.target, units=self.units, proposer=self.proposer)
        return DropRegion(region=self.target, proposer=self.proposer)


class Sedate(_OfPart):
    """Put gates around a part, so that the model computes what it would without it.

    A region hands on what enters it. Units are masked wherever they are consumed, as in the
    reference of a cut. Nothing is removed; `Wake` takes the gates out again.

    Attributes:
        target: ID of a region, or of an axis.
        units: birth numbers of the units of the axis: heads, channels, neurons, blocks of them.
    """

    type: Literal["sedate"] = "sedate"

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class Wake(ProposalBase):
    """Take the gates of a sedated target out: graph, tensors and outputs are as before, bit for
    bit.
    """

    type: Literal["wake"] = "wake"
    target: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)


class Lyse(_OfPart):
    """Remove a region or units for good, on the evidence of a harmless probe.

    A region leaves a scar: an identity on which a seed may grow once its quarantine is over. Units
    go as in `PruneUnits`. Only at a boundary, and only with the evidence that the model's terms ask
    for.
    """

    type: Literal["lyse"] = "lyse"

    @property
    def tolerance(self) -> Tolerance:
        return "lossy" if not self.units else "exact"


class ForgetScar(ProposalBase):
    """Remove an expired scar's identity from the graph, and its memory."""

    type: Literal["forget-scar"] = "forget-scar"
    slot: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.slot,)


class NoteProbe(_OfPart):
    """Write a probe's finding into the ledger; harm locks the target and leaves an antibody.

    Attributes:
        outcome: as the stopping rule decided.
        change: mean change of the loss under sedation, paired by batch; higher is worse.
        error: standard error of that mean.
        batches: on how many batches it rests.
    """

    type: Literal["note-probe"] = "note-probe"
    outcome: Literal["harmful", "harmless", "undecided"]
    change: float
    error: float = Field(default=0.0, ge=0)
    batches: int = Field(ge=0)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.outcome == "harmless" and not math.isfinite(self.change):
            raise ValueError(f"a part is not shown to be harmless by a change of {self.change}")
        return self


class TendLedger(ProposalBase):
    """Bring the ledger up to the present tick: rents fall due, use pays, old harm fades.

    Attributes:
        uses: target -> use per tick in units of the loss; without, what its last probe says.
    """

    type: Literal["tend-ledger"] = "tend-ledger"
    uses: Mapping[str, float] = Field(default_factory=dict)


class GrantLease(ProposalBase):
    """Only `holder` may touch the target before the tick `until`; a lease that is over is none."""

    type: Literal["grant-lease"] = "grant-lease"
    target: str
    holder: str = Field(min_length=1)
    until: int

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)
