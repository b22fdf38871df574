"""Emrakul's table: cheapest evidence and highest rent first, the smaller of equals, parts first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from esper.agents.decay_acts import PROBES, REMOVALS
from esper.agents.rules import Rule, Scene
from esper.agents.space import ACT, WAIT
from esper.live.observation import UNDERWAY

if TYPE_CHECKING:
    from esper.agents.emrakul import Emrakul

_CALM = 4.0  # what it weighs that something else is going on


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
    return -_CALM if choice in (*PROBES, *REMOVALS) and falling else 0.0


def _curious(scene: Scene, choice: str) -> float:
    return 2.0 if choice == "probe" and _open(scene, choice) else 0.0


def _fine(scene: Scene, choice: str) -> float:
    return 1.5 if choice == "weigh" and _open(scene, choice) else 0.0


def _open(scene: Scene, act: str) -> bool:
    return any(not _known(scene, target) for target in scene.allowed("target", act=act))


def _proven(scene: Scene, choice: str) -> float:
    if choice not in REMOVALS:
        return 0.0
    return 3.0 * any(_harmless(scene, target) for target in scene.allowed("target", act=choice))


def _expired(scene: Scene, choice: str) -> float:
    return 1.5 if choice == "forget" and scene.allowed("target", act="forget") else 0.0


def _evidence(scene: Scene, choice: str) -> float:
    act = scene.picks[ACT]
    wrong = act in REMOVALS and not _harmless(scene, choice)
    return -10.0 if wrong or (act in PROBES and _known(scene, choice)) else 0.0


def _parts(scene: Scene, choice: str) -> float:
    if scene.picks[ACT] != "probe":
        return 0.0
    inside = [t for t in scene.allowed("target", act="probe") if t.startswith(f"{choice}.")]
    return -4.0 * any(not _known(scene, target) for target in inside)


def _rent(scene: Scene, choice: str) -> float:
    return 2.0 * _share(scene, choice, "debt")


def _missed(scene: Scene, choice: str) -> float:
    return -2.0 * _share(scene, choice, "saliency")


def _share(scene: Scene, choice: str, name: str) -> float:
    """A figure as a share of the highest among what may be chosen."""
    peers = scene.allowed("target", act=scene.picks[ACT])
    highest = max((scene.figure(peer, name) for peer in peers), default=0.0)
    return scene.figure(choice, name) / highest if highest > 0 else 0.0


def _small(scene: Scene, choice: str) -> float:
    return -math.log10(1.0 + scene.figure(choice, "parameters"))


def _cheap(scene: Scene, choice: str) -> float:
    return -0.5 * scene.figure(choice, "probes")


def _harm(scene: Scene, choice: str) -> float:
    return -scene.figure(choice, "harm")


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
    Rule("young", ACT, "probes, removals -4: the loss falls fast, parts still learn", _young),
    Rule("curious", ACT, "probe +2: of some region no finding is fresh", _curious),
    Rule("fine", ACT, "weigh +3/2: of some group of units no finding is fresh", _fine),
    Rule("proven", ACT, "lyse, trim +3: of some part a fresh finding is harmless", _proven),
    Rule("expired", ACT, "forget +3/2: a scar has expired", _expired),
    Rule("evidence", "target", "-10: probing what is known, removing what is not", _evidence),
    Rule("parts", "target", "-4: no finding is fresh of some region inside it", _parts),
    Rule("rent", "target", "up to +2 for its share of the highest debt", _rent),
    Rule("missed", "target", "up to -2 for its share of the highest saliency signal", _missed),
    Rule("small", "target", "-1 for each factor of 10 in parameters that would go", _small),
    Rule("cheap", "target", "-1/2 for each probe that was spent on it", _cheap),
    Rule("harm", "target", "minus the weight of remembered harm", _harm),
)
