"""Two ways to compute the same, timed side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import comb, exp, log

import torch

Run = Callable[[], object]

_WARM = 3  # calls before any is timed
_VISIT = 2e-4  # least seconds of a timed stretch
_PAIRS = (15, 101)  # fewest and most pairs
_ALPHA = 0.01  # one-sided error of the bound


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second way is than the first.

    Attributes:
        median: of the ratios of pairs.
        lower: one-sided 99% bound on it (order statistic; makes no assumption on the noise).
        pairs: how many.
    """

    median: float
    lower: float
    pairs: int


def duel(present: Run, other: Run, *, device: str = "cpu", seconds: float = 1.0) -> Ratio:
    """Time both in pairs, in random order within each, for about `seconds`.

    Weights stay in the cache between calls, which flatters the larger of the two: a first look that
    says what is worth proposing, before the gate times the whole step in fresh processes.
    """
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    for _ in range(_WARM):
        present()
        other()
    repeats = [max(1, round(_VISIT / max(_time(run, 1, wait), 1e-7))) for run in (present, other)]
    rng, ratios, started = random.Random(0), list[float](), time.perf_counter()
    fewest, most = _PAIRS
    while len(ratios) < fewest or (len(ratios) < most and time.perf_counter() - started < seconds):
        took = [0.0, 0.0]
        order = [0, 1]
        rng.shuffle(order)
        for way in order:
            took[way] = _time((present, other)[way], repeats[way], wait)
        ratios.append(log(took[0] / took[1]))
    ratios.sort()
    return Ratio(exp(ratios[len(ratios) // 2]), exp(ratios[_rank(len(ratios))]), len(ratios))


def _time(run: Run, repeats: int, wait: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - started) / repeats


def _rank(count: int) -> int:
    """Position of the order statistic below which the median lies with probability `_ALPHA`."""
    total, rank = 0, 0
    while True:
        total += comb(count, rank)
        if total / 2**count > _ALPHA:
            return max(rank - 1, 0)
        rank += 1


def _nothing() -> None:
    """Calls on a CPU are over when they return."""
