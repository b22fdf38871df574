"""Two ways to compute the same, timed side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log

import torch

Run = Callable[[], object]

_WARM = 3  # calls before any is timed
_VISIT = 2e-4  # least seconds of a timed stretch
_PAIRS = 15  # fewest, and when it is first asked whether they suffice
_ALPHA = 0.01  # error of each bound
_CLEAR = 1.25  # upper over lower bound of what may be relied on later


@dataclass(frozen=True)
class Ratio:
    """How many times faster the second way is than the first.

    Attributes:
        median: of the ratios of pairs.
        lower, upper: 99% bounds on it (order statistics, which assume nothing of the noise).
        pairs: how many.
    """

    median: float
    lower: float
    upper: float
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the bounds are close enough to rely on, on another day."""
        return self.upper <= _CLEAR * self.lower


def duel(
    present: Run, other: Run, *, bar: float = 1.0, device: str = "cpu", seconds: float = 1.0
) -> Ratio:
    """Time both in pairs, in random order within each, until it is clear or for `seconds`.

    Clear is what may be relied on later, and on which side of `bar` it is. One thread is timed by
    the processor time that it takes, which does not count what other programs take meanwhile. A
    first look that says what is worth proposing, before the gate times the whole step in fresh
    processes.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    stretch = _Stretch(
        time.thread_time if alone else time.perf_counter,
        torch.cuda.synchronize if device == "cuda" else _nothing,
    )
    for _ in range(_WARM):
        present()
        other()
    repeats = [max(1, round(_VISIT / max(stretch.of(run, 1), 1e-7))) for run in (present, other)]
    rng, ratios, started = random.Random(0), list[float](), time.perf_counter()
    asked = _PAIRS
    while len(ratios) < _PAIRS or time.perf_counter() - started <= seconds:
        if len(ratios) == asked:
            found, asked = _ratio(ratios), 2 * asked  # few looks: each could be clear by chance
            if found.clear and not found.lower <= bar <= found.upper:
                break
        took, order = [0.0, 0.0], [0, 1]
        rng.shuffle(order)
        for way in order:
            took[way] = stretch.of((present, other)[way], repeats[way])
        ratios.append(log(took[0] / took[1]))
    return _ratio(ratios)


@dataclass(frozen=True)
class _Stretch:
    """Times calls, in seconds each."""

    clock: Callable[[], float]
    wait: Callable[[], object]

    def of(self, run: Run, repeats: int) -> float:
        self.wait()
        started = self.clock()
        for _ in range(repeats):
            run()
        self.wait()
        return max(self.clock() - started, 1e-9) / repeats


def _ratio(logs: list[float]) -> Ratio:
    ordered = sorted(logs)
    count, rank = len(ordered), _rank(len(ordered))
    low, high = ordered[rank], ordered[count - 1 - rank]
    return Ratio(exp(ordered[count // 2]), exp(low), exp(high), count)


def _rank(count: int) -> int:
    """Position of the order statistic below which the median lies with probability `_ALPHA`."""
    total, ways, rank = 0, 1, 0  # ways to choose `rank` of `count`
    while True:
        total += ways
        if total / 2**count > _ALPHA:
            return max(rank - 1, 0)
        ways = ways * (count - rank) // (rank + 1)
        rank += 1


def _nothing() -> None:
    """Calls on a CPU are over when they return."""
