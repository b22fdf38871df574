"""Times contenders in interleaved rounds, and lets no time count whose output is wrong.

The contenders of a panel are visited in a new random order in every round, so that what the
machine does meanwhile meets all alike. Rounds are grouped by *placement*: the copies of the weights
are made anew for each, because where memory lies is chance, too, and stays while it is held.
"""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

import torch

from esper.errors import UsageError
from esper_kernel_bench.contender import Built, Call, Contender
from esper_kernel_bench.problem import Problem
from esper_kernel_bench.timing import Clock, Timed
from esper_kernels.roofline import Work

_MOST_COPIES = 512
_REST = 2.0  # a placement over its rounds: warming up and checking take time, too
_PATH = re.compile(r"\s*\(/[^)]*\)")  # as in "cannot import name 'x' from 'y' (/place/of/y.py)"
SLOW = 8.0  # peers that take so many times the baseline are left out of the rounds


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        placements: how often weights are laid out anew.
        seconds: of a panel in one placement, within the bounds of rounds.
        least, most: rounds of a placement.
        longest: seconds that a round may take; what would take longer is skipped.
    """

    placements: int = 4
    seconds: float = 1.5
    least: int = 2
    most: int = 16
    longest: float = 15.0

    def __post_init__(self) -> None:
        if self.placements < 2 or self.placements * self.least < 7:
            # Below 7 rounds the exact sign test cannot reach 1%.
            raise UsageError("at least 2 placements and 7 rounds in all are needed")


@dataclass
class Track:
    """What became of one contender in one panel.

    Attributes:
        samples: seconds, by placement and round.
        error: the largest relative error of a checked output.
        reason: why it takes no part (any more); empty while it does.
    """

    contender: Contender
    work: Work | None = None
    samples: list[list[float]] = field(default_factory=list)
    error: float = 0.0
    reason: str = ""

    def refuse(self, error: Exception) -> None:
        """Take no part any more; the first reason stays."""
        self.reason = self.reason or reason_of(error)
        self.samples.clear()


@dataclass
class Rows:
    """A panel in the making: all contenders on the input of M rows.

    `round_seconds` is what a round took when warm, `skipped` why there are no rounds.
    """

    m: int
    tracks: dict[str, Track]
    rounds: int = 0
    round_seconds: float = 0.0
    skipped: str = ""


class Group:
    """All contenders on one problem, for all its numbers of rows."""

    def __init__(
        self,
        problem: Problem,
        contenders: Sequence[Contender],
        clock: Clock,
        effort: Effort,
        rng: random.Random,
        deadline: float = float("inf"),
    ) -> None:
        self._problem = problem
        self._clock = clock
        self._effort = effort
        self._rng = rng
        self._deadline = deadline
        self._copying = 0.0  # seconds that copying took last
        self._built: dict[str, Built] = {}
        refused: dict[str, str] = {}
        for contender in contenders:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # beta notices of the libraries
                    self._built[contender.key] = contender.build(problem)
            except Exception as error:  # noqa: BLE001 - whatever a library raises is its reason
                refused[contender.key] = reason_of(error)
        self.panels = [
            Rows(m, {c.key: Track(c, reason=refused.get(c.key, "")) for c in contenders})
            for m in sorted(problem.rows)
        ]
        for rows in self.panels:
            for key, built in self._built.items():
                rows.tracks[key].work = built.work(rows.m)

    def measure(self, said: Callable[[str], None] = lambda what: None) -> list[Rows]:
        """Run all placements. Panels that take too long are `skipped`."""
        for placement in range(self._effort.placements):
            before_copies = time.monotonic()
            calls = self._copied()
            self._copying = time.monotonic() - before_copies
            for position, rows in enumerate(self.panels):
                if placement == 0:
                    before = self.panels[position - 1] if position else None
                    rows.skipped = self._why_not(rows, before)
                if rows.skipped:
                    continue
                said(f"{rows.m} rows, placement {placement + 1} of {self._effort.placements}")
                self._visit(rows, calls)
            del calls  # before the next copies are made: large layers fill the memory
        return self.panels

    def _why_not(self, rows: Rows, smaller: Rows | None) -> str:
        """Why a panel is not begun; empty when it is. What was left out before stays out."""
        begun = sum(_REST * panel.rounds * panel.round_seconds for panel in self.panels)
        rest = (self._effort.placements - 1) * (self._copying + begun)
        if time.monotonic() + rest > self._deadline:
            return "no time left"  # the other placements of what was begun will take it
        if smaller is None:
            return ""
        if smaller.skipped:
            return smaller.skipped
        _carry_over(smaller, rows)
        expected = smaller.round_seconds * rows.m / smaller.m
        if expected > self._effort.longest and smaller.round_seconds > 1:
            return f"a round would take some {expected:.0f} s"
        return ""

    def _copied(self) -> dict[str, list[Call]]:
        """New copies of everything; who cannot be copied ends its part in all panels."""
        calls: dict[str, list[Call]] = {}
        for key in list(self._built):
            try:
                calls[key] = self._copies(key)
            except Exception as error:  # noqa: BLE001 - whatever a library raises is its reason
                del self._built[key]
                for rows in self.panels:
                    rows.tracks[key].refuse(error)
        return calls

    def _copies(self, key: str) -> list[Call]:
        built, clock = self._built[key], self._clock
        together = built.bytes if clock.alone else sum(b.bytes for b in self._built.values())
        count = min(_MOST_COPIES, max(1, ceil(clock.rotated / together)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [built.make() for _ in range(count)]

    def _visit(self, rows: Rows, calls: dict[str, list[Call]]) -> None:
        """One placement of one panel."""
        timed: dict[str, Timed] = {}
        for key, track in rows.tracks.items():
            if not track.reason:
                with _refusing(track):
                    timed[key] = self._clock.prepare(calls[key], self._problem.input(rows.m))
                    self._check(rows, key, timed[key])
        if not rows.rounds:
            _leave_out_slow(rows, timed)
            spent = sum(timed[key].warm for key, track in rows.tracks.items() if not track.reason)
            rows.round_seconds = spent
            fits = int(self._effort.seconds / max(spent, 1e-9))
            rows.rounds = min(self._effort.most, max(self._effort.least, fits))
        running = [key for key, track in rows.tracks.items() if not track.reason]
        for key in running:
            rows.tracks[key].samples.append([])
        with torch.inference_mode():
            for _ in range(rows.rounds):
                for key in self._rng.sample(running, len(running)):
                    rows.tracks[key].samples[-1].append(timed[key].seconds())
        for key in running:
            with _refusing(rows.tracks[key]):
                self._check(rows, key, timed[key])

    def _check(self, rows: Rows, key: str, timed: Timed) -> None:
        """Compare the last output with the reference."""
        built, track = self._built[key], rows.tracks[key]
        error = self._problem.error(timed.output(), built.reference, rows.m)
        track.error = max(track.error, error)
        if not error <= built.tolerance:
            raise ArithmeticError(f"wrong result: relative error {error:.2g}")


@contextmanager
def _refusing(track: Track) -> Iterator[None]:
    """What is raised inside ends a contender's part in a panel and is kept as the reason."""
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # beta notices of the libraries
            yield
    except Exception as error:  # noqa: BLE001 - whatever a library raises is its reason
        track.refuse(error)


def _leave_out_slow(rows: Rows, timed: dict[str, Timed]) -> None:
    """A peer that nobody would choose is named and not timed on: it would only cost rounds."""
    base = [
        timed[k].warm for k, t in rows.tracks.items() if t.contender.role == "dense" and k in timed
    ]
    for key, track in rows.tracks.items():
        if track.contender.role == "peer" and not track.reason and base:
            times = timed[key].warm / base[0]
            if times > SLOW:
                track.reason = f"left out: {times:.0f} times the dense layer at M={rows.m}"


def _carry_over(smaller: Rows, rows: Rows) -> None:
    """What was left out with fewer rows is not tried with more."""
    for key, track in smaller.tracks.items():
        if track.reason.startswith("left out"):
            rows.tracks[key].reason = track.reason


def reason_of(error: Exception) -> str:
    """The first line of what was raised, without paths, with its type where that says something."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = _PATH.sub("", line)
    plain = type(error).__name__ in ("AbsentError", "ArithmeticError")
    text = line if plain else f"{type(error).__name__}: {line}".rstrip(": ")
    return text if len(text) <= 200 else f"{text[:199]}\N{HORIZONTAL ELLIPSIS}"
