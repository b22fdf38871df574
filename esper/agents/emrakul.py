"""Emrakul decays: probes what costs most and is cheapest to know of, removes what is not needed.

A probe sedates its target on held-out batches at one boundary and leaves the model bit for bit as
it was; what it found stands in the immune ledger, and only a fresh harmless finding leads to a
lysis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from esper.agents.agent import RuleAgent
from esper.agents.rules import Rule, Scene
from esper.agents.space import ACT, WAIT, Act, Picks
from esper.ecology.betting import Rule as StoppingRule
from esper.errors import UsageError
from esper.live.observation import UNDERWAY
from esper.propose import ForgetScar, Lyse, Sedate, TendLedger
from esper.recorder.calls import replayable

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.live.probe import Loss
    from esper.propose import Proposal
    from esper.recorder.event import Event

_CALM = 4.0  # what it weighs that something else is going on


def _phages(observation: Observation, _: Picks) -> Sequence[str]:
    return [r.id for r in observation.rows if r.kind == "phage" and r.figures.get("bypassable")]


def _scars(observation: Observation, _: Picks) -> Sequence[str]:
    return [r.id for r in observation.rows if r.kind == "slot" and r.figures.get("scar")]


# The proposers are those of the final proposals: a lease lets its holder alone touch a target.
_NAME = "emrakul"
PROBE = Act("probe", {"target": _phages}, lambda _, p: Sedate(target=p["target"], proposer=_NAME))
LYSE = Act("lyse", {"target": _phages}, lambda _, p: Lyse(target=p["target"], proposer=_NAME))
FORGET = Act(
    "forget", {"target": _scars}, lambda _, p: ForgetScar(slot=p["target"], proposer=_NAME)
)


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


# -- the table -------------------------------------------------------------------------------------


def _wait(scene: Scene, choice: str) -> float:
    return float(choice == WAIT)


def _calm(scene: Scene, choice: str) -> float:
    me: Emrakul = scene.options
    known = scene.figure("loss", "count") >= me.warm
    rising = scene.figure("loss", "change") > me.spike
    return -_CALM if choice != WAIT and (rising or not known) else 0.0


def _settled(scene: Scene, choice: str) -> float:
    underway = sum(scene.figure("run", stage) for stage in UNDERWAY)
    return -_CALM if choice != WAIT and underway else 0.0


def _young(scene: Scene, choice: str) -> float:
    me: Emrakul = scene.options
    falling = scene.figure("loss", "change") < -me.young
    return -_CALM if choice in ("probe", "lyse") and falling else 0.0


def _curious(scene: Scene, choice: str) -> float:
    open_ = [t for t in scene.allowed("target", act="probe") if not _known(scene, t)]
    return 2.0 if choice == "probe" and open_ else 0.0


def _proven(scene: Scene, choice: str) -> float:
    good = [t for t in scene.allowed("target", act="lyse") if _harmless(scene, t)]
    return 3.0 if choice == "lyse" and good else 0.0


def _rent(scene: Scene, choice: str) -> float:
    highest = max(scene.figure(part, "debt") for part in scene.values)
    return 2.0 * scene.figure(choice, "debt") / highest if highest > 0 else 0.0


def _small(scene: Scene, choice: str) -> float:
    return -math.log10(1.0 + scene.figure(choice, "parameters"))


def _cheap(scene: Scene, choice: str) -> float:
    return -0.5 * scene.figure(choice, "probes")


def _harm(scene: Scene, choice: str) -> float:
    return -scene.figure(choice, "harm")


def _expired(scene: Scene, choice: str) -> float:
    return 1.5 if choice == "forget" and scene.allowed("target", act="forget") else 0.0


def _evidence(scene: Scene, choice: str) -> float:
    wrong = {"lyse": not _harmless(scene, choice), "probe": _known(scene, choice)}
    return -10.0 if wrong.get(scene.picks[ACT]) else 0.0


def _known(scene: Scene, target: str) -> bool:
    """Whether a probe's finding about the target is fresh."""
    me: Emrakul = scene.options
    known = scene.figure(target, "probes") > 0
    return known and scene.figure(target, "found_age") <= me.fresh


def _harmless(scene: Scene, target: str) -> bool:
    return _known(scene, target) and scene.figure(target, "found.harmless") > 0


RULES: tuple[Rule, ...] = (
    Rule("wait", ACT, "waiting is worth 1: nothing is done that nothing speaks for", _wait),
    Rule("calm", ACT, "all else -4: the loss is rising, or not known yet", _calm),
    Rule("settled", ACT, "all else -4: a seed is underway", _settled),
    Rule("young", ACT, "probe, lyse -4: the loss falls fast, parts are still learning", _young),
    Rule("curious", ACT, "probe +2: of some part no finding is fresh", _curious),
    Rule("proven", ACT, "lyse +3: of some part a fresh finding is harmless", _proven),
    Rule("expired", ACT, "forget +3/2: a scar has expired", _expired),
    Rule("evidence", "target", "-10: probing what is known, removing what is not", _evidence),
    Rule("rent", "target", "up to +2 for its share of the highest debt", _rent),
    Rule("small", "target", "-1 for each factor of 10 in parameters that would go", _small),
    Rule("cheap", "target", "-1/2 for each probe that was spent on it", _cheap),
    Rule("harm", "target", "minus the weight of remembered harm", _harm),
)


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

    name: ClassVar[str] = _NAME
    rules: ClassVar[tuple[Rule, ...]] = RULES
    acts: ClassVar[tuple[Act, ...]] = (PROBE, LYSE, FORGET)

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
            rule=self.held_out.rule,
            proposer=self.name,
            cause=cause,
        )
        return (entry,)
