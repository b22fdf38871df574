"""The decision rule against known values, symmetries and simulated truth."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.errors import GateError
from esper.gate.statistics import (
    Array,
    Rule,
    Samples,
    bootstrap,
    calibration_noise,
    contrast_candidate,
    decide,
    sign_test,
    student_quantile,
)
from tests.gate.support import simulated

RULE = Rule(resamples=500)


@pytest.mark.parametrize(
    ("probability", "df", "value"),
    [
        # Tables of Student's t distribution.
        (0.95, 1, 6.3138),
        (0.99, 2, 6.9646),
        (0.99, 5, 3.3649),
        (0.995, 11, 3.1058),
        (0.975, 120, 1.9799),
    ],
)
def test_student_quantile_matches_tables(probability: float, df: int, value: float) -> None:
    assert student_quantile(probability, df) == pytest.approx(value, rel=1e-4)


def test_sign_test_is_the_exact_binomial_tail() -> None:
    rounds = np.zeros((10, 3))
    rounds[:8, 2] = -1.0  # eight wins
    rounds[8:9, 2] = 1.0  # one loss
    rounds[9, :] = (0.0, 2.0, 1.0)  # between the copies: a tie
    assert sign_test(Samples((rounds,))) == pytest.approx((1 + 9) / 2**9)


def test_sign_test_without_evidence_is_one() -> None:
    assert sign_test(Samples((np.zeros((5, 3)),))) == 1.0


@given(shift=st.floats(-3, 3), seed=st.integers(0, 50))
@settings(max_examples=20)
def test_machine_speed_does_not_matter(shift: float, seed: int) -> None:
    samples = simulated(3, effect=0.05, seed=seed)
    faster = Samples(tuple(block + shift for block in samples.processes))
    one, two = decide(samples, RULE), decide(faster, RULE)
    assert one.call == two.call
    assert one.speedup == pytest.approx(two.speedup)
    assert one.lower == pytest.approx(two.lower)


@given(seed=st.integers(0, 50))
@settings(max_examples=20)
def test_the_two_copies_are_interchangeable(seed: int) -> None:
    samples = simulated(3, effect=0.03, seed=seed)
    swapped = Samples(tuple(block[:, [1, 0, 2]] for block in samples.processes))
    assert decide(samples, RULE).speedup == pytest.approx(decide(swapped, RULE).speedup)
    assert decide(samples, RULE).p_sign == decide(swapped, RULE).p_sign


@given(effect=st.floats(0.0, 1.0), seed=st.integers(0, 50))
@settings(max_examples=30)
def test_bounds_enclose_the_estimate_and_a_slower_candidate_is_never_accepted(
    effect: float, seed: int
) -> None:
    found = decide(simulated(6, effect=effect, seed=seed), RULE)
    assert found.lower <= found.speedup <= found.upper
    slower = decide(simulated(6, effect=1 / (1 + effect) - 1, seed=seed), RULE)
    assert slower.call != "accept"


def test_clear_changes_are_accepted_and_absent_ones_rejected() -> None:
    assert decide(simulated(6, effect=0.5), RULE).call == "accept"
    assert decide(simulated(6, effect=0.05), RULE).call == "accept"
    assert decide(simulated(6, effect=0.0), RULE, horizon=12).call == "reject"
    assert decide(simulated(6, effect=-0.2), RULE).call == "reject"


def test_estimates_are_unbiased_under_skewed_noise() -> None:
    """Averaging the copies before comparing would report several percent here."""
    rng = np.random.default_rng(0)
    blocks = tuple(rng.exponential(0.5, (400, 3)) for _ in range(12))
    boot = bootstrap([contrast_candidate(b) for b in blocks], RULE, 0.01, seed=1)
    assert abs(boot.estimate) < 3 * boot.standard_error
    averaged = np.median(np.concatenate([b[:, :2].mean(axis=1) - b[:, 2] for b in blocks]))
    assert averaged > 5 * boot.standard_error


def test_offsets_between_processes_widen_the_bound() -> None:
    calm = simulated(4, effect=0.05, noise=0.002)
    offsets = (0.03, -0.03, 0.02, -0.02)
    moved = Samples(
        tuple(b + np.array([0, 0, o]) for b, o in zip(calm.processes, offsets, strict=True))
    )
    assert decide(calm, RULE).call == "accept"
    found = decide(moved, RULE)
    assert found.between > 0.015
    assert found.lower < decide(calm, RULE).lower - 0.02
    assert found.call != "accept"


def test_noise_between_identical_copies_raises_the_bar() -> None:
    calm = simulated(4, effect=0.03, noise=0.002)
    biased = Samples(tuple(b + np.array([0, 0.08, 0]) for b in calm.processes))
    assert decide(calm, RULE).delta_effective == pytest.approx(RULE.delta)
    assert calibration_noise(biased, RULE) > 0.05
    assert decide(biased, RULE).delta_effective > 0.05
    assert decide(biased, RULE).call != "accept"


def test_delta_is_a_bar_on_the_bound_and_not_on_the_estimate() -> None:
    samples = simulated(6, effect=0.03, noise=0.005)
    found = decide(samples, RULE)
    assert found.call == "accept"
    strict = replace(RULE, delta=found.lower - 1 + 1e-4)
    assert decide(samples, strict).call != "accept"


def test_results_repeat_exactly_and_depend_on_the_seed() -> None:
    samples = simulated(5, effect=0.02)
    assert decide(samples, RULE) == decide(samples, RULE)
    assert decide(samples, RULE).lower != decide(samples, replace(RULE, seed=1)).lower


def test_false_acceptance_and_power_by_simulation() -> None:
    """Two hundred simulated comparisons of nothing, and of 5%: the rule's own error rates."""
    rule = Rule(resamples=300)
    nothing = sum(decide(simulated(3, 0.0, seed=s), rule).call == "accept" for s in range(200))
    five = sum(decide(simulated(6, 0.05, seed=s), rule).call == "accept" for s in range(50))
    assert nothing <= 2
    assert five >= 48


def test_lists_round_trip() -> None:
    samples = simulated(2, rounds=3)
    again = Samples.from_lists(samples.to_lists())
    assert len(again) == 2
    assert again.rounds == 6
    np.testing.assert_allclose(again.processes[1], samples.processes[1], atol=1e-6)
    assert again.first(1).rounds == 3


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros((3, 2)), "shape"),
        (np.zeros((1, 3)), "two rounds"),
        (np.array([[0.0, 0.0, np.nan]] * 3), "not finite"),
        (np.array([[0.0, log(2.0), np.inf]] * 3), "not finite"),
    ],
)
def test_bad_samples_are_refused(block: Array, message: str) -> None:
    with pytest.raises(GateError, match=message):
        Samples((block,))


@pytest.mark.parametrize(
    "wrong",
    [{"delta": -0.1}, {"delta": 1.0}, {"confidence": 1.0}, {"confidence": 0.4}, {"looks": (3, 3)},
     {"looks": ()}, {"looks": (1, 4)}],
)  # fmt: skip
def test_bad_rules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(GateError):
        Rule(**wrong)  # type: ignore[arg-type]


def test_one_process_decides_nothing() -> None:
    with pytest.raises(GateError, match="at least 2 processes"):
        decide(simulated(1), RULE)
