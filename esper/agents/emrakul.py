"""Emrakul decays: probes what costs most and is cheapest to know about, removes what proved harmless.

A probe sedates its target on held-out batches at one boundary and leaves the model bit for bit as it
was; what it found stands in the immune ledger, and only a fresh harmless finding leads to a lysis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from esper.agents.agent import RuleAgent
from esper.agents.rules import Rule, Scene
from esper.agents.space import ACT, WAIT, Act, Picks
from esper.live.observation import UNDERWAY
from esper.propose import Lyse, Sedate
from esper.recorder.calls import replayable

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal

_CALM = 4.0  # what it weighs that something else is going on


def _phages(observation: Observation, _: Picks) -> Sequence[str]:
    return [r.id for r in observation.rows if r.kind == "phage" and r.figures["bypassable"]]


def _probe(observation: Observation, picks: Picks) -> Proposal:
    return Sedate(target=picks["target"])


def _lyse(observation: Observation, picks: Picks) -> Proposal:
    return Lyse(target=picks["target"])


PROBE = Act("probe", {"target": _phages}, _probe)
LYSE = Act("lyse", {"target": _phages}, _lyse)


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


def _evidence(scene: Scene, choice: str) -> float:
    if scene.picks[ACT] == "lyse":
        return 0.0 if _harmless(scene, choice) else -10.0
    return -10.0 if _known(scene, choice) else 0.0


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
    Rule("curious", ACT, "probe +2: of some part no finding is fresh", _curious),
    Rule("proven", ACT, "lyse +3: of some part a fresh finding is harmless", _proven),
    Rule("evidence", "target", "-10: probing what is known, removing what is not", _evidence),
    Rule("rent", "target", "up to +2 for its share of the highest debt", _rent),
    Rule("small", "target", "-1 for each factor of 10 in parameters that would go", _small),
    Rule("cheap", "target", "-1/2 for each probe that was spent on it", _cheap),
    Rule("harm", "target", "minus the weight of remembered harm", _harm),
)


@replayable
@dataclass(frozen=True, kw_only=True)
class Emrakul(RuleAgent):
    """Decays by `RULES`.

    Attributes:
        spike: a loss that rises by more than this share over half its window is left in peace.
        fresh: ticks for which a probe's finding counts.
    """

    name: ClassVar[str] = "emrakul"
    rules: ClassVar[tuple[Rule, ...]] = RULES
    acts: ClassVar[tuple[Act, ...]] = (PROBE, LYSE)

    spike: float = 0.05
    fresh: int = 50
