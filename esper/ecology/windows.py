"""Statistics over short windows of figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.645  # one-sided 95% of the normal distribution


def trend(values: Sequence[float], window: int) -> float | None:
    """Mean of the last values over the mean of as many before; None for less than two a side."""
    half = min(len(values) // 2, window)
    if half < 2:
        return None
    recent, earlier = math.fsum(values[-half:]), math.fsum(values[-2 * half : -half])
    if earlier == 0:
        return 0.0 if recent == 0 else math.inf
    return recent / earlier


def worse(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Paired comparison of two windows of losses, relative to the mean before.

    Both windows are of one training run, whose loss falls by itself: that speaks for the seed. Who
    wants more gives `Session.boundary` the loss on held-out batches.

    Returns:
        `loss-change`: mean of the differences; `loss-worse`: the lower bound of its one-sided 95%
        interval, so that a seed is blamed only for what noise does not explain.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    difference = second - first
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    scale = max(abs(float(first.mean())), float(np.finfo(np.float64).tiny))
    return {"loss-change": mean / scale, "loss-worse": (mean - _Z * error) / scale}
