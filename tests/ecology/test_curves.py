"""Curves run from start to end without turning back; windows and gates say what they mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.ecology.criteria import GATES, PROBATION, Criterion, StageGate, gate
from esper.ecology.curves import TEMPOS, alpha, blend
from esper.ecology.windows import trend, worse
from esper.ir.ecology import Blend

LEVELS = st.sampled_from([0.0, 0.25, 1.0])


@given(
    st.sampled_from(["linear", "cosine", "sigmoid"]),
    st.integers(1, 70),
    st.floats(0.1, 30),
    LEVELS,
    LEVELS,
)
def test_alpha_runs_from_start_to_end(
    curve: str, ticks: int, steepness: float, start: float, end: float
) -> None:
    made = Blend(curve=curve, ticks=ticks, steepness=steepness, start=start, end=end)  # type: ignore[arg-type]
    values = [alpha(made, tick) for tick in range(-1, ticks + 2)]
    assert values[:2] == [start, start]
    assert values[-2:] == [end, end]
    sign = 1 if end >= start else -1
    rises = [sign * (b - a) for a, b in itertools.pairwise(values)]
    assert min(rises) >= -1e-12
    assert all(min(start, end) <= v <= max(start, end) for v in values)


def test_half_way_is_half_and_steepness_steepens() -> None:
    for curve in ("linear", "cosine", "sigmoid"):
        assert alpha(Blend(curve=curve, ticks=10), 5) == pytest.approx(0.5)
    slow, fast = (alpha(Blend(curve="sigmoid", ticks=10, steepness=s), 7) for s in (2, 9))
    assert slow < fast


def test_tempos() -> None:
    assert TEMPOS["short"] < TEMPOS["standard"] == Blend().ticks < TEMPOS["long"]
    out = blend("short", curve="cosine", out=True)
    assert (out.start, out.end, out.ticks) == (1.0, 0.0, TEMPOS["short"])


def test_trend() -> None:
    assert trend([1, 1, 1], 5) is None
    assert trend([4, 4, 2, 2], 5) == 0.5
    assert trend([9, 9, 9, 9, 4, 4, 2, 2], 2) == 0.5
    assert trend([0, 0, 0, 0], 5) == 0
    assert trend([0, 0, 1, 1], 5) == math.inf


def test_a_seed_is_blamed_only_for_what_noise_does_not_explain() -> None:
    """The bound covers: without a true change it is positive in about 5% of the cases."""
    draw = np.random.default_rng(0)
    bounds = [worse(*(1 + draw.normal(0, 0.1, (2, 20))))["loss-worse"] for _ in range(2000)]
    assert 0.03 < np.mean(np.asarray(bounds) > 0) < 0.08
    assert worse([1.0] * 20, [1.2] * 20)["loss-worse"] == pytest.approx(0.2)
    assert worse([2.0, 2.2], [1.0, 1.2])["loss-change"] == pytest.approx(-1 / 2.1)


def test_gates_pass_when_every_figure_is_there_and_meets_its_limit() -> None:
    made = StageGate(
        "g", "holding", "committed", (Criterion("a", ">=", 1, ""), Criterion("b", "<=", 2, ""))
    )
    assert made.passes({"a": 1, "b": 2})
    assert not made.passes({"a": 1})
    assert [c.figure for c in made.missing({"a": 1})] == ["b"]
    assert [c.text() for c in made.failing({"a": 0, "b": math.nan})] == ["a >= 1", "b <= 2"]
    assert gate(GATES, "holding", "committed") is PROBATION
    assert gate(GATES, "committed", "holding") is None
    assert all(c.meaning for g in GATES for c in g.criteria)
