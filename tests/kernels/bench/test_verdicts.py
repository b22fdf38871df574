"""Verdicts on synthetic samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from esper_kernel_bench.verdicts import judge, noise

PLACEMENTS, ROUNDS = 4, 12


def samples(
    seconds: float, seed: int, spread: float = 0.01, drift: bool = True, offset: float = 0.0
) -> list[list[float]]:
    """Log-normal times around a median, with a drift that all contenders share."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(0, 0.3, (PLACEMENTS, ROUNDS)) * drift
    own = rng.normal(0, spread, (PLACEMENTS, ROUNDS)) + rng.normal(0, offset, (PLACEMENTS, 1))
    times: list[list[float]] = (seconds * np.exp(own + shared)).tolist()
    return times


@pytest.mark.parametrize(
    ("factor", "outcome"), [(1.3, "FAST"), (1 / 1.3, "SLOW"), (1.0, "SAME"), (1.06, "FAST")]
)
def test_true_ratios_are_found_below_a_drift_much_larger(factor: float, outcome: str) -> None:
    verdict = judge(samples(factor * 1e-3, 1), samples(1e-3, 2))
    assert verdict.outcome == outcome
    assert verdict.ratio == pytest.approx(factor, rel=0.02)
    assert verdict.lower < verdict.ratio < verdict.upper


def test_what_scatters_too_much_is_ambiguous() -> None:
    assert judge(samples(1.05e-3, 1, spread=0.5), samples(1e-3, 2, spread=0.5)).outcome == (
        "AMBIGUOUS"
    )


def test_placements_that_disagree_are_ambiguous_though_rounds_agree() -> None:
    found = judge(samples(1.05e-3, 1, offset=0.2), samples(1e-3, 2, offset=0.2))
    assert found.outcome == "AMBIGUOUS"


def test_an_effect_within_the_noise_does_not_count() -> None:
    other, own = samples(1.1e-3, 1), samples(1e-3, 2)
    assert judge(other, own).outcome == "FAST"
    verdict = judge(other, own, noise=0.2)
    assert verdict.outcome == "AMBIGUOUS"
    assert verdict.bar == pytest.approx(np.exp(0.2))


def test_few_rounds_cannot_convince_the_sign_test() -> None:
    verdict = judge([[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]])
    assert verdict.p_sign == pytest.approx(1 / 16)
    assert verdict.outcome == "AMBIGUOUS"


def test_equal_times_are_the_same() -> None:
    times = samples(1e-3, 1)
    verdict = judge(times, times)
    assert (verdict.outcome, verdict.p_sign) == ("SAME", 1.0)


def test_noise_is_what_two_copies_differ_by() -> None:
    quiet = noise(samples(1e-3, 1, spread=0.001), samples(1e-3, 2, spread=0.001))
    loud = noise(samples(1e-3, 1, spread=0.1), samples(1e-3, 2, spread=0.1))
    assert quiet < 0.002 < 0.02 < loud


def test_two_copies_are_rarely_told_apart() -> None:
    outcomes = [
        judge(samples(1e-3, 2 * i, spread=0.05), samples(1e-3, 2 * i + 1, spread=0.05)).outcome
        for i in range(60)
    ]
    assert sum(outcome in ("FAST", "SLOW") for outcome in outcomes) <= 2
