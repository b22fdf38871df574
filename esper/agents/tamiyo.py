"""Tamiyo grows: a seed, or more units, where the gradient asks for it and the loss falls no more.

She advances nothing: what she planted blends in, holds and commits by its own criteria
(`esper.live.lifecycle`), or is culled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from esper.agents.agent import RuleAgent
from esper.agents.rules import Rule, Scene
from esper.agents.space import ACT, WAIT, Act, Picks
from esper.ecology.curves import TEMPOS, blend
from esper.live.observation import UNDERWAY
from esper.propose import PlantSeed, WidenUnits
from esper.recorder.calls import replayable

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal

#: Dimensions of the value at a slot -> blueprints that she knows for it, best first. Others are
#: left to those who propose them by name.
SUITED: Mapping[int, tuple[str, ...]] = {
    2: ("mlp-small", "gated-branch", "low-rank"),
    3: ("mlp-small", "depthwise", "attention"),
    4: ("conv-medium", "conv-light", "squeeze-excite"),
}

_NAME = "tamiyo"  # of the final proposals too: a lease lets its holder alone touch a target
_SPREAD = 4.0  # a gradient ten times that of another is worth this much
_REGROW = 8.0  # more than two powers of ten in the gradient elsewhere
_NOISY = 0.25  # of a loss whose steps are a quarter of its level


def _slots(observation: Observation, _: Picks) -> Sequence[str]:
    return [row.id for row in observation.rows if row.kind == "slot"]


def _blueprints(observation: Observation, picks: Picks) -> Sequence[str]:
    slot = observation.session.model.anatomy.slots.get(picks["target"])
    return () if slot is None else SUITED.get(len(slot.shape), ())


def _plant(observation: Observation, picks: Picks) -> Proposal:
    slot = picks["target"]
    algorithm: Any = picks["blend"]
    return PlantSeed(
        slot=slot,
        proposer=_NAME,
        blueprint=picks["blueprint"],
        blend=blend(picks["tempo"], algorithm=algorithm),
        # Each seed of a slot draws its own weights.
        seed=observation.session.model.ecology.slot(slot).planted,
    )


PLANT = Act(
    "plant",
    {
        "target": _slots,
        "blueprint": _blueprints,
        "blend": lambda *_: ("add", "multiply", "gated"),
        "tempo": lambda *_: tuple(TEMPOS),
    },
    _plant,
)


def _axes(observation: Observation, _: Picks) -> Sequence[str]:
    return [row.id for row in observation.rows if row.kind == "axis"]


def _widen(observation: Observation, picks: Picks) -> Proposal:
    axis = observation.session.model.anatomy.axes.get(picks["target"])
    size = 1 if axis is None else axis.size  # what is gone is refused all the same
    count = max(1, size * SHARES[picks["share"]] // 100)
    return WidenUnits(axis=picks["target"], count=count, seed=size, proposer=_NAME)


#: How many units come, in percent of those that are there.
SHARES = {"quarter": 25, "half": 50, "double": 100}

WIDEN = Act("widen", {"target": _axes, "share": lambda *_: tuple(SHARES)}, _widen)


# -- the table -------------------------------------------------------------------------------------


def _wait(scene: Scene, choice: str) -> float:
    return float(choice == WAIT)


def _plateau(scene: Scene, choice: str) -> float:
    me: Tamiyo = scene.options
    known = scene.figure("loss", "count") >= me.warm
    flat = scene.figure("loss", "change") > -me.plateau
    underfit = scene.figure("loss", "level") > me.enough
    return 2.0 if choice != WAIT and known and flat and underfit else 0.0


def _busy(scene: Scene, choice: str) -> float:
    me: Tamiyo = scene.options
    underway = sum(scene.figure("run", stage) for stage in UNDERWAY)
    return -4.0 if choice != WAIT and underway >= me.most else 0.0


def _budget(scene: Scene, choice: str) -> float:
    me: Tamiyo = scene.options
    spent = me.budget and scene.figure("run", "parameters") >= me.budget
    return -4.0 if choice != WAIT and spent else 0.0


def _turns(scene: Scene, choice: str) -> float:
    slots = scene.allowed("target", act="plant")
    tried = all(scene.figure(slot, "planted") for slot in slots)
    wanted = "widen" if tried else "plant"
    return 0.5 if choice == wanted else 0.0


def _steepest(scene: Scene, choice: str) -> float:
    strength = scene.figure(choice, "gradient")
    return _SPREAD * math.log10(strength + 1e-12) if strength else 0.0


def _fresh(scene: Scene, choice: str) -> float:
    return -2.0 * scene.figure(choice, "planted")


def _scar(scene: Scene, choice: str) -> float:
    if not scene.figure(choice, "scar"):
        return 0.0
    return _REGROW if scene.figure(choice, "scar_change") > 0 else -2.0


def _suited(scene: Scene, choice: str) -> float:
    names = SUITED.get(int(scene.figure(scene.picks["target"], "dims")), ())
    return 2.0 - names.index(choice) if choice in names else 0.0


def _other(scene: Scene, choice: str) -> float:
    return -4.0 * scene.figure(scene.picks["target"], f"blueprint.{choice}")


def _gentle(scene: Scene, choice: str) -> float:
    noisy = scene.figure("loss", "noise") > _NOISY
    return float(choice == ("gated" if noisy else "add"))


def _modest(scene: Scene, choice: str) -> float:
    return float(choice == "half")


def _pace(scene: Scene, choice: str) -> float:
    noise = scene.figure("loss", "noise")
    wanted = "long" if noise > _NOISY else "standard" if noise > _NOISY / 5 else "short"
    return float(choice == wanted)


RULES: tuple[Rule, ...] = (
    Rule("wait", ACT, "waiting is worth 1: nothing is done that nothing speaks for", _wait),
    Rule("plateau", ACT, "growth +2: the loss falls no more and is above `enough`", _plateau),
    Rule("busy", ACT, "growth -4: `most` seeds are underway already", _busy),
    Rule("budget", ACT, "growth -4: `budget` parameters are there", _budget),
    Rule("turns", ACT, "plant +1/2 while some slot never had a seed, then widen +1/2", _turns),
    Rule("steepest", "target", "+4 for each factor of 10 in the gradient there", _steepest),
    Rule("fresh", "target", "-2 for each seed that was planted there before", _fresh),
    Rule(
        "scar",
        "target",
        "+8 on a scar whose removal cost some loss, else -2",
        _scar,
    ),
    Rule("suited", "blueprint", "+2, +1 for the first and second that suit the value", _suited),
    Rule("other", "blueprint", "-4 for the one that was tried there last", _other),
    Rule("gentle", "blend", "+1: gated where the loss is noisy, add elsewhere", _gentle),
    Rule("modest", "share", "half as many units again +1", _modest),
    Rule("pace", "tempo", "+1: long where the loss is noisy, short where it is calm", _pace),
)


@replayable
@dataclass(frozen=True, kw_only=True)
class Tamiyo(RuleAgent):
    """Grows by `RULES`.

    Attributes:
        plateau: a loss that falls by less than this share over half its window falls no more.
        enough: loss below which nothing grows.
        most: seeds that may be underway at a time.
        budget: parameters from which on nothing grows; 0: no limit.
    """

    name: ClassVar[str] = _NAME
    rules: ClassVar[tuple[Rule, ...]] = RULES
    acts: ClassVar[tuple[Act, ...]] = (PLANT, WIDEN)

    plateau: float = 0.05
    enough: float = 0.0
    most: int = 1
    budget: int = 0
