"""Rounds, copies, checks and refusals, with made-up times."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from esper.errors import UsageError
from esper_kernel_bench.contender import Built, Call, Contender
from esper_kernel_bench.sampling import Effort, Group, Rows, reason_of
from tests.kernels.bench.fakes import FakeClock, contender, problem, standard

EFFORT = Effort(placements=3, seconds=30.0, least=3, most=5, longest=1e9)


def measured(
    *more: Contender, clock: FakeClock | None = None, effort: Effort = EFFORT
) -> tuple[list[Rows], FakeClock]:
    used = clock or FakeClock()
    group = Group(problem(), standard(*more), used, effort, random.Random(0))
    return group.measure(), used


def test_every_contender_is_visited_once_a_round() -> None:
    panels, clock = measured(contender("fast", 0.5))
    for rows in panels:
        assert {len(t.samples) for t in rows.tracks.values()} == {3}
        assert {len(s) for t in rows.tracks.values() for s in t.samples} == {5}
    rounds = [clock.log[i : i + 3] for i in range(0, len(clock.log), 3)]
    assert all(len(set(each)) == 3 for each in rounds)
    assert len(Counter(map(tuple, rounds))) > 2  # in new orders


def test_rounds_follow_the_time_that_a_round_takes() -> None:
    panels, _ = measured(contender("slow but ours", 100.0, role="esper"))
    assert {rows.rounds for rows in panels} == {EFFORT.least}


def test_copies_fill_the_rotation_together_or_alone() -> None:
    _, together = measured()
    each = 24 * 16 * 4
    assert together.copies["dense"] == -(-10_000 // (2 * each))
    _, alone = measured(clock=FakeClock(alone=True))
    assert alone.copies["dense"] == -(-10_000 // each)


def test_wrong_results_are_not_timed() -> None:
    panels, clock = measured(contender("wrong", 0.1, off=0.5), contender("nan", 0.1, off=1e400))
    for rows in panels:
        assert "wrong result: relative error" in rows.tracks["wrong"].reason
        assert "wrong result: relative error inf" in rows.tracks["nan"].reason
        assert not rows.tracks["wrong"].samples
    assert set(clock.log) == {"dense", "dense, again"}


def test_outputs_of_timed_calls_are_checked_too() -> None:
    other = contender("drifts", 1.0)
    built = other.build(problem())
    calls = []

    def build(_: object) -> object:
        def make() -> object:
            inner = built.make()

            def call(x: object) -> object:
                calls.append(1)
                return inner(x) + (len(calls) > 2)  # type: ignore[arg-type]

            call.plan = ("drifts", lambda visit: 1.0)  # type: ignore[attr-defined]
            return call

        return replace(built, make=make)  # type: ignore[arg-type]

    panels, _ = measured(Contender("drifts", "peer", "dense", 1.0, build))  # type: ignore[arg-type]
    assert "wrong result" in panels[0].tracks["drifts"].reason
    assert not panels[0].tracks["drifts"].samples


def test_who_refuses_or_raises_is_named_with_the_reason() -> None:
    panels, _ = measured(
        contender("absent", 1.0, refuses="not installed"), contender("dies", 1.0, dies_at=40)
    )
    small, large = panels
    assert small.tracks["absent"].reason == large.tracks["absent"].reason == "not installed"
    assert small.tracks["dies"].reason == ""
    assert large.tracks["dies"].reason == "RuntimeError: too many rows"


def test_who_cannot_be_copied_is_named_and_the_others_go_on() -> None:
    """Packing is where a processor refuses a format, and where memory ends."""
    built, made = contender("packs", 1.0).build(problem()), [0]

    def build(_: object) -> Built:
        def make() -> Call:
            made[0] += 1
            if made[0] > before:
                raise RuntimeError("no such format here")
            return built.make()

        return replace(built, make=make)

    for before in (0, 4):  # at once, or in a later placement, after it was timed
        made[0] = 0
        panels, clock = measured(Contender("packs", "peer", "dense", 1.0, build))
        assert ("packs" in clock.log) == bool(before)
        for rows in panels:
            assert rows.tracks["packs"].reason == "RuntimeError: no such format here"
            assert not rows.tracks["packs"].samples
            assert {len(s) for s in rows.tracks["dense"].samples} == {5}
            assert len(rows.tracks["dense"].samples) == 3


def test_peers_that_nobody_would_choose_are_left_out_and_stay_so() -> None:
    panels, clock = measured(contender("slow", 20.0), contender("ours", 20.0, role="esper"))
    assert panels[0].tracks["slow"].reason == "left out: 20 times the dense layer at M=3"
    assert panels[1].tracks["slow"].reason == panels[0].tracks["slow"].reason
    assert "slow" not in clock.log
    assert panels[0].tracks["ours | dense"].samples


def test_what_no_longer_fits_is_skipped() -> None:
    group = Group(
        problem(), standard(), FakeClock(), EFFORT, random.Random(0), time.monotonic() - 1
    )
    assert [rows.skipped for rows in group.measure()] == ["no time left", "no time left"]


def test_rounds_that_would_take_too_long_are_not_begun() -> None:
    effort = Effort(placements=3, least=3, longest=20.0)
    panels, _ = measured(effort=effort)  # 2 s with 3 rows, so some 27 s with 40
    assert [rows.skipped for rows in panels] == ["", "a round would take some 27 s"]


def test_too_few_rounds_for_the_sign_test_are_refused() -> None:
    with pytest.raises(UsageError):
        Effort(placements=3, least=2)
    with pytest.raises(UsageError):
        Effort(placements=1, least=9)


def test_reasons_hold_no_paths() -> None:
    error = ImportError("cannot import name 'a' from 'b' (/some/where/b.py)")
    assert reason_of(error) == "ImportError: cannot import name 'a' from 'b'"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 999))) == 200
