"""Emrakul decays: probes what costs most and is cheapest to know of, removes what is not needed.

A probe sedates its target on held-out batches at one boundary and leaves the model bit for bit as
it was; what it found stands in the immune ledger, and only a fresh harmless finding leads to a
removal. Regions come before units: they free more for one probe, and what is left is trimmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from esper.agents.agent import RuleAgent
from esper.agents.decay_acts import FORGET, LYSE, NAME, PROBE, TRIM, WEIGH
from esper.agents.decay_rules import RULES
from esper.agents.rules import Rule
from esper.agents.space import Act
from esper.ecology.betting import Rule as StoppingRule
from esper.errors import UsageError
from esper.propose import Sedate, TendLedger
from esper.recorder.calls import replayable

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.live.probe import Loss
    from esper.propose import Proposal
    from esper.recorder.event import Event


@dataclass(frozen=True)
class HeldOut:
    """What probes measure on.

    Attributes:
        batches: that training does not see, in the order in which probes take them.
        loss: (model, batch) -> loss, which must call the model that it is given.
        rule: when a probe stops, and what counts as harm.
    """

    batches: Sequence[Any]
    loss: Loss
    rule: StoppingRule = field(default_factory=StoppingRule)


@replayable
@dataclass(frozen=True, kw_only=True)
class Emrakul(RuleAgent):
    """Decays by `RULES`, and keeps the ledger: rents fall due whenever she decides.

    Attributes:
        held_out: what she probes on; only `propose` needs it.
        spike: a loss that rises by more than this share over half its window is left in peace.
        young: while the loss falls by more than this share over half its window, parts are
            still learning, and what they are worth is not known.
        fresh: ticks for which a probe's finding counts.
    """

    name: ClassVar[str] = NAME
    rules: ClassVar[tuple[Rule, ...]] = RULES
    acts: ClassVar[tuple[Act, ...]] = (PROBE, LYSE, WEIGH, TRIM, FORGET)

    held_out: HeldOut | None = field(default=None, compare=False, repr=False)
    spike: float = 0.05
    young: float = 0.1
    fresh: int = 50

    def propose(self, observation: Observation) -> tuple[Proposal, ...]:
        """A decision, and an entry into the ledger. Probes are held at once, at this boundary.

        Raises:
            UsageError: there is nothing to probe on.
        """
        if not self.due(observation.tick):
            return ()
        if self.held_out is None:
            raise UsageError(
                "Emrakul probes before she removes: Emrakul(held_out=HeldOut(batches, loss))"
            )
        return super().propose(observation)

    def carried_out(
        self, observation: Observation, proposal: Proposal | None, cause: Event | None
    ) -> tuple[Proposal, ...]:
        """Holds a probe at once, so that its finding is in the ledger; then rents fall due."""
        entry = observation.because(TendLedger(proposer=self.name), cause)
        if not isinstance(proposal, Sedate):
            return (*super().carried_out(observation, proposal, cause), entry)
        assert self.held_out is not None
        observation.boundary.probe(
            proposal.target,
            self.held_out.batches,
            loss=self.held_out.loss,
            units=proposal.units,
            rule=self.held_out.rule,
            proposer=self.name,
            cause=cause,
        )
        return (entry,)
