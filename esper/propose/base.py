"""What every proposal has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Tolerance = Literal["exact", "reassociates", "lossy"]


class ProposalBase(BaseModel):
    """Fields that every proposal has.

    Attributes:
        type: names the kind of change; each subclass has one value.
        proposer: who asks (a pass, an agent, a person, a replayed log).
        evidence: figures on which the proposer relied, for the record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    proposer: str = "user"
    evidence: dict[str, float | int | str] = Field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """Stable IDs or names of the parts that change."""
        return ()

    @property
    def tolerance(self) -> Tolerance:
        """How outputs may differ from what the proposal means to compute."""
        return "exact"

    @property
    def payload(self) -> str:
        """Digest under which `Model.payloads` holds tensors that it brings; empty for none.

        Records keep these tensors, and replays and reproducers hand them on under this name.
        """
        return ""
