"""Tamiyo's table: grow where the gradient asks for it, with what suits the place and has worked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from esper.agents.rules import Rule, Scene
from esper.agents.space import ACT, WAIT
from esper.live.observation import UNDERWAY

if TYPE_CHECKING:
    from esper.agents.tamiyo import Tamiyo

#: Dimensions of the value at a slot -> built-in blueprints, those that suit it best first: what
#: mixes positions where there are any, the lighter of equals, a frame for others last.
SUITED: Mapping[int, tuple[str, ...]] = {
    2: ("mlp-small", "gated-branch", "low-rank", "mlp-4x", "norm", "container"),
    3: (
        *("mlp-small", "depthwise", "attention", "gated-branch"),
        *("low-rank", "mlp-4x", "norm", "container"),
    ),
    4: (
        *("conv-medium", "conv-light", "squeeze-excite", "depthwise", "bottleneck", "conv-heavy"),
        *("mlp-small", "gated-branch", "low-rank", "mlp-4x", "norm", "container"),
    ),
}

_SPREAD = 4.0  # a gradient ten times that of another is worth this much
_REGROW = 8.0  # more than two powers of ten in the gradient elsewhere
_NOISY = 0.25  # of a loss whose steps are a quarter of its level


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
    return 2.0 / (1 + names.index(choice)) if choice in names else 0.0


def _preferred(scene: Scene, choice: str) -> float:
    me: Tamiyo = scene.options
    return 4.0 if choice in me.prefer else 0.0


def _proved(scene: Scene, choice: str) -> float:
    culled = sum(scene.figure(slot, f"culled.{choice}") for slot in scene.values)
    planted = [slot for slot in scene.values if scene.figure(slot, f"blueprint.{choice}")]
    return 0.5 * sum(scene.figure(slot, "committed") for slot in planted) - culled


def _control(scene: Scene, choice: str) -> float:
    return -8.0 if choice == "no-op" else 0.0


def _other(scene: Scene, choice: str) -> float:
    names = (f"blueprint.{choice}", f"culled.{choice}")
    return -4.0 * any(scene.figure(scene.picks["target"], name) for name in names)


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
    Rule("scar", "target", "+8 on a scar whose removal cost some loss, else -2", _scar),
    Rule("suited", "blueprint", "+2, +1, +2/3, ... in the order in which they suit it", _suited),
    Rule("preferred", "blueprint", "+4 for those of `prefer`", _preferred),
    Rule("proved", "blueprint", "+1/2 for each seed of it that stayed, -1 if culled", _proved),
    Rule("control", "blueprint", "-8 for no-op, which can learn nothing", _control),
    Rule("other", "blueprint", "-4 for what is there already or was culled there", _other),
    Rule("gentle", "blend", "+1: gated where the loss is noisy, add elsewhere", _gentle),
    Rule("modest", "share", "half as many units again +1", _modest),
    Rule("pace", "tempo", "+1: long where the loss is noisy, short where it is calm", _pace),
)
