"""Figures over paired seeds: medians, lower quartiles, bootstrap intervals, an exact sign test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

_RESAMPLES = 4000
_LEVEL = 0.95


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and lower quartile (q25)."""
    found = np.asarray(values, np.float64)
    return float(np.median(found)), float(np.quantile(found, 0.25))


@dataclass(frozen=True)
class Paired:
    """Differences between two arms, one a seed.

    Attributes:
        name: of the comparison.
        differences: treatment minus control, by seed.
        higher: whether higher is better.
    """

    name: str
    differences: tuple[float, ...]
    higher: bool = True

    @property
    def median(self) -> float:
        """Of the differences."""
        return float(np.median(self.differences))

    @property
    def interval(self) -> tuple[float, float]:
        """Percentile bootstrap of the median at 95%, with a fixed seed; it contains the median."""
        found = np.asarray(self.differences, np.float64)
        draws = np.random.default_rng(0).integers(len(found), size=(_RESAMPLES, len(found)))
        medians = np.median(found[draws], axis=1)
        low, high = np.quantile(medians, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return float(low), float(high)

    @property
    def won(self) -> int:
        """Seeds in which the treatment is better."""
        return sum((d > 0) == self.higher and d != 0 for d in self.differences)

    @property
    def lost(self) -> int:
        """Seeds in which it is worse."""
        return sum((d < 0) == self.higher and d != 0 for d in self.differences)

    @property
    def p(self) -> float:
        """One-sided exact sign test that the treatment is better; ties are left out."""
        n = self.won + self.lost
        return float(sum(comb(n, k) for k in range(self.won, n + 1)) / 2**n)

    def sentence(self) -> str:
        """All of it for a person."""
        low, high = self.interval
        ties = len(self.differences) - self.won - self.lost
        return (
            f"{self.name}: median {self.median:+.4g} [{low:+.4g}, {high:+.4g}] over "
            f"{len(self.differences)} paired seeds; {self.won} better, {self.lost} worse, "
            f"{ties} equal (sign test p = {self.p:.3g})"
        )
