"""The stopping rule of probes: how often it errs, when it stops, what it does with disasters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.ecology.betting import Rule, judge

RULE = Rule(margin=0.01, error=0.05)


def _rate(outcome: str, mean: float, noise: float, runs: int = 300) -> float:
    """How often the rule concludes `outcome` on normal differences, looking at every batch."""
    generator = np.random.default_rng(7)
    draws = generator.normal(mean, noise, size=(runs, RULE.most))
    return float(np.mean([judge(list(row), RULE).outcome == outcome for row in draws]))


def test_errors_are_as_rare_as_promised() -> None:
    # At the margin both claims are wrong. Noise stays inside the clipping range, so that the
    # clipped mean is the mean.
    assert _rate("harmful", RULE.margin, 0.01) <= 0.08
    assert _rate("harmless", RULE.margin, 0.01) <= 0.08


def test_clear_effects_are_found() -> None:
    assert _rate("harmless", 0.0, 0.005) >= 0.95
    assert _rate("harmful", 0.03, 0.01) >= 0.95


def test_the_clearer_the_sooner() -> None:
    counts = [judge([change] * 64, RULE).batches for change in (0.015, 0.02, 0.04, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] <= 10
    nothing = judge([0.0] * 64, RULE)
    assert nothing.outcome == "harmless"
    assert nothing.batches <= 32


def test_too_few_batches_decide_nothing() -> None:
    assert judge([], RULE).outcome == "undecided"
    for change in (0.0, 5.0):
        found = judge([change] * 3, RULE)
        assert (found.outcome, found.batches) == ("undecided", 3)


def test_a_rare_disaster_does_not_pass_for_harmless() -> None:
    differences = [*[-0.001] * 20, 50.0, *[-0.001] * 43]
    found = judge(differences[20:], RULE)
    assert found.outcome != "harmless"
    assert found.clipped == 1
    assert found.mean > RULE.margin


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_harm(broken: float) -> None:
    found = judge([0.0, 0.0, 0.0, 0.0, broken], RULE)
    assert (found.outcome, found.batches) == ("harmful", 5)
    assert math.isfinite(found.mean)
    assert math.isfinite(found.error)


@given(st.lists(st.floats(-1, 1), max_size=40), st.lists(st.floats(-1, 1), max_size=10))
def test_what_is_decided_stays_decided(first: list[float], more: list[float]) -> None:
    found = judge(first, RULE)
    again = judge([*first, *more], RULE)
    if found.outcome != "undecided":
        assert again == found
    assert judge(first, RULE) == found


@pytest.mark.parametrize(
    "wrong",
    [{"margin": 0.0}, {"spread": 1.0}, {"error": 1.0}, {"least": 0}, {"least": 9, "most": 8}],
)
def test_what_is_no_rule(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"margin must|a probe looks"):
        Rule(**wrong)  # type: ignore[arg-type]
