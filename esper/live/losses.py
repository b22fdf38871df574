"""The recent past of the loss: how high, how fast it falls, how noisy it is."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from itertools import pairwise


class Losses:
    """A window of losses, one a boundary; those that are not finite are left out.

    Args:
        window: how many are remembered.
    """

    def __init__(self, window: int = 64) -> None:
        self._kept: deque[float] = deque(maxlen=window)

    def add(self, loss: float) -> None:
        """The loss of one more step."""
        if math.isfinite(loss):
            self._kept.append(loss)

    def figures(self) -> dict[str, float]:
        """What agents see.

        count: losses in the window; all else is 0 while there are fewer than four.
        level: median of the newer half.
        change: from the median of the older half to that of the newer, relative to the older.
        noise: median step between neighbours, relative to the level: what of `change` is chance.
        """
        kept = list(self._kept)
        figures = {"count": float(len(kept)), "level": 0.0, "change": 0.0, "noise": 0.0}
        if len(kept) < 4:
            return figures
        middle = len(kept) // 2
        old, new = statistics.median(kept[:middle]), statistics.median(kept[middle:])
        steps = [abs(a - b) for a, b in pairwise(kept)]
        figures["level"] = new
        figures["change"] = _share(new - old, old)
        figures["noise"] = _share(statistics.median(steps), new)
        return figures

    def state(self) -> list[float]:
        """For checkpoints."""
        return list(self._kept)

    def assign(self, losses: Iterable[float]) -> None:
        """Put back what `state` returned."""
        self._kept.clear()
        self._kept.extend(losses)


def _share(part: float, whole: float) -> float:
    return part / abs(whole) if whole else 0.0
