"""How alpha moves: curves over a number of ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from esper.ir.ecology import Algorithm, Blend, Curve

#: Ticks that a blend takes, by name.
TEMPOS: Mapping[str, int] = MappingProxyType({"short": 8, "standard": 20, "long": 60})


def alpha(blend: Blend, elapsed: int) -> float:
    """Alpha after a number of ticks; exactly `start` before the first, exactly `end` from the last.

    The curves rise without turning back, so alpha stays between `start` and `end`.
    """
    if elapsed <= 0:
        return blend.start
    if elapsed >= blend.ticks:
        return blend.end
    share = _CURVES[blend.curve](elapsed / blend.ticks, blend.steepness)
    return blend.start + (blend.end - blend.start) * share


def blend(
    tempo: str = "standard",
    *,
    algorithm: Algorithm = "add",
    curve: Curve = "linear",
    steepness: float = 6.0,
    out: bool = False,
) -> Blend:
    """A blend by tempo; `out` leads from 1 to 0. Raises KeyError for a tempo that is not there."""
    start, end = (1.0, 0.0) if out else (0.0, 1.0)
    return Blend(
        algorithm=algorithm,
        curve=curve,
        ticks=TEMPOS[tempo],
        steepness=steepness,
        start=start,
        end=end,
    )


def _linear(t: float, _: float) -> float:
    return t


def _cosine(t: float, _: float) -> float:
    return 0.5 - 0.5 * math.cos(math.pi * t)


def _sigmoid(t: float, steepness: float) -> float:
    """Logistic in t - 1/2, scaled so that it runs from 0 to 1."""

    def logistic(u: float) -> float:
        return 1 / (1 + math.exp(-2 * steepness * u))

    low, high = logistic(-0.5), logistic(0.5)
    return (logistic(t - 0.5) - low) / (high - low)


_CURVES: Mapping[Curve, Callable[[float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
}
