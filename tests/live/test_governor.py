"""The governor's judgement of losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import esper


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_broken_from_the_start(loss: float) -> None:
    assert "the loss is" in esper.Governor().judge(loss)


def test_a_jump_is_judged_once_there_is_a_past() -> None:
    governor = esper.Governor(least=8)
    for index in range(7):
        assert governor.judge(1.0 + 0.01 * index) == ""
    assert governor.judge(50.0) == ""  # too early to know
    for _ in range(20):
        governor.judge(1.0)
    assert "far above its recent median" in governor.judge(50.0)
    assert governor.judge(1.0) == ""


def test_a_broken_loss_does_not_join_the_window() -> None:
    governor = esper.Governor(least=4)
    for _ in range(10):
        governor.judge(1.0)
    for _ in range(100):
        assert governor.judge(9.0)
    assert set(governor.losses) == {1.0}


@given(st.lists(st.floats(0.9, 1.1), min_size=20, max_size=200))
def test_waves_are_no_breakdown(losses: list[float]) -> None:
    governor = esper.Governor()
    assert [governor.judge(loss) for loss in losses] == [""] * len(losses)
    assert len(governor.losses) <= governor.window


@given(st.lists(st.floats(1.0, 2.0), min_size=64, max_size=64))
def test_a_falling_loss_is_never_broken(noise: list[float]) -> None:
    governor = esper.Governor()
    for index, wave in enumerate(noise):
        assert governor.judge(wave * math.exp(-index / 20)) == ""
