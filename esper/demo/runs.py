"""What a training run of a storyboard gave."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.records import Record


@dataclass(frozen=True)
class Change:
    """What became of one proposal.

    Attributes:
        tick: of the boundary.
        type, target, proposer: of the proposal.
        kind, code: of its record.
        units: of an axis that it named.
        outcome: that a noted probe had.
    """

    tick: int
    type: str
    target: str
    proposer: str
    kind: str
    code: str
    units: tuple[int, ...] = ()
    outcome: str = ""

    @classmethod
    def of(cls, tick: int, record: Record) -> Change:
        """From a record of that tick."""
        proposal = record.proposal
        assert proposal is not None
        target = proposal.targets[0] if proposal.targets else ""
        return cls(
            tick,
            proposal.type,
            target,
            proposal.proposer,
            record.kind,
            record.code,
            tuple(getattr(proposal, "units", ())),
            getattr(proposal, "outcome", ""),
        )


@dataclass
class Run:
    """What a training run gave.

    Attributes:
        accuracy, loss: on the test part, at the end.
        cost: of training, in 1e9 multiply-accumulates.
        per_step: cost of the last step.
        parameters: at the end.
        losses: (tick, loss of the training batch).
        changes: what became of each proposal, in order.
        rollbacks: of the governor.
    """

    accuracy: float = math.nan
    loss: float = math.nan
    cost: float = 0.0
    per_step: float = 0.0
    parameters: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    rollbacks: int = 0

    @property
    def churn(self) -> int:
        """Structural changes that were committed."""
        return sum(change.kind == "passed" and change.type in STRUCTURAL for change in self.changes)

    @property
    def failed(self) -> bool:
        """Whether the run broke."""
        broken = any(change.kind == "failure" for change in self.changes)
        return broken or not math.isfinite(self.loss)


#: Proposals that change what is computed; probes and the ledger's entries do not.
STRUCTURAL = frozenset(
    {"plant-seed", "advance-seed", "cull-seed", "widen-units", "lyse", "forget-scar", "drop-region"}
)
