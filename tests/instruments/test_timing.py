"""Timing: own time of nested phases, rows that add up, a table."""

from __future__ import annotations

import pytest

from esper.instruments import Stack, Timing
from esper.instruments.timing import OUTSIDE
from tests.instruments.support import Shrink, Tidy, model


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run() -> Timing:
    clock, m = Clock(), model()
    timing = Timing(clock)
    stack = Stack([timing])
    clock.now += 5  # before the run: counted nowhere
    with stack.run(m, "shrink,tidy,shrink"):
        clock.now += 1
        stack.before_pass(m, Shrink())
        clock.now += 2
        with stack.phase("propose"):
            clock.now += 3
        with stack.phase("apply"):
            clock.now += 4
            with stack.phase("verify"):
                clock.now += 8
            clock.now += 16
        stack.after_pass(m, Shrink(), [])
        stack.before_pass(m, Tidy())
        clock.now += 0.5
        stack.after_pass(m, Tidy(), [])
        stack.before_pass(m, Shrink(0.1))
        with stack.phase("propose"):
            clock.now += 32
        stack.after_pass(m, Shrink(0.1), [])
        with stack.phase("gate"):
            clock.now += 96
    clock.now += 7
    return timing


def test_own_time_by_pass_and_phase() -> None:
    rows = run().seconds()
    assert list(rows) == [OUTSIDE, "shrink", "tidy"]
    shrink = rows["shrink"]
    expected = {"runs": 2, "propose": 35, "plan": 0, "apply": 20, "verify": 8}
    assert {key: shrink[key] for key in expected} == expected
    assert shrink["other"] == 2
    assert shrink["total"] == 65
    assert rows["tidy"]["total"] == 0.5
    assert (rows[OUTSIDE]["gate"], rows[OUTSIDE]["other"], rows[OUTSIDE]["runs"]) == (96, 1, 0)


def test_everything_inside_the_run_is_counted_once() -> None:
    assert sum(row["total"] for row in run().seconds().values()) == 162.5


def test_table() -> None:
    lines = run().text().splitlines()
    assert lines[0].split() == [
        *("seconds", "runs", "propose", "plan", "apply", "verify"),
        *("gate", "quality", "other", "total"),
    ]
    assert [line.split()[0] for line in lines[1:]] == ["outside", "shrink", "tidy", "all"]
    assert (lines[1].split()[-1], lines[2].split()[-1]) == ("97.000", "65.000")
    assert lines[-1].split()[-1] == "162.500"
    assert len({len(line) for line in lines}) == 1


def test_phase_that_raises_is_booked() -> None:
    clock, m = Clock(), model()
    timing = Timing(clock)
    stack = Stack([timing])

    def fail() -> None:
        clock.now += 3
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), stack.run(m), stack.phase("plan"):
        fail()
    assert timing.seconds()[OUTSIDE]["plan"] == 3
