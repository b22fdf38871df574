"""Looks, confirmation and replay."""

from __future__ import annotations

import pytest

from esper.gate.sequential import Conclusion, Draw, Stage, advance, factor
from esper.gate.statistics import Rule, Samples
from tests.gate.support import simulated

RULE = Rule(looks=(3, 6), resamples=500)
NONE = Samples()
SEARCH: tuple[Stage, ...] = ("search",)


def test_it_starts_with_the_first_look() -> None:
    assert advance(NONE, NONE, RULE) == Draw("search", 3)
    assert advance(simulated(1), NONE, RULE) == Draw("search", 2)


def test_nothing_is_rejected_at_the_first_look() -> None:
    step = advance(simulated(3, 0.0), NONE, RULE)
    assert isinstance(step, Conclusion)
    assert (step.outcome, step.stage, step.decision.processes) == ("reject", "search", 3)
    assert "does not clear" in step.reason


def test_a_find_needs_confirmation_on_other_samples() -> None:
    found = simulated(3, 0.5)
    assert advance(found, NONE, RULE) == Draw("confirm", 3)
    confirmed = advance(found, simulated(3, 0.5, seed=1), RULE)
    assert isinstance(confirmed, Conclusion)
    assert (confirmed.outcome, confirmed.stage) == ("accept", "confirm")


def test_a_find_that_does_not_repeat_is_rejected_with_the_second_estimate() -> None:
    step = advance(simulated(3, 0.5), simulated(3, 0.0, seed=1), RULE)
    assert isinstance(step, Conclusion)
    assert step.outcome == "reject"
    assert step.decision.speedup < 1.05
    assert step.reason.startswith("not confirmed")


def test_the_reported_figures_come_from_the_confirmation_alone() -> None:
    one = advance(simulated(3, 0.5, seed=2), simulated(3, 0.3, seed=1), RULE)
    two = advance(simulated(3, 0.9, seed=3), simulated(3, 0.3, seed=1), RULE)
    assert isinstance(one, Conclusion)
    assert isinstance(two, Conclusion)
    assert one.decision == two.decision


def test_the_cap_ends_in_ambiguous() -> None:
    # Right at the bar: neither above nor below can be shown.
    steps = [advance(simulated(6, 0.015, seed=s, noise=0.03), NONE, RULE) for s in range(20)]
    outcomes = {s.outcome for s in steps if isinstance(s, Conclusion)}
    assert "ambiguous" in outcomes
    assert "accept" not in outcomes


def test_each_look_spends_an_equal_share_in_advance() -> None:
    assert RULE.alpha_per_look == pytest.approx(0.005)
    step = advance(simulated(3, 0.0), NONE, RULE)
    assert isinstance(step, Conclusion)
    assert step.decision.alpha == pytest.approx(0.005)


def test_samples_beyond_a_decisive_look_change_nothing() -> None:
    early, late = simulated(3, 0.0), simulated(3, 0.5, seed=9)
    one, two = advance(early, NONE, RULE), advance(early + late, NONE, RULE)
    assert one == two


def test_running_out_of_time_takes_the_next_look_early() -> None:
    both: tuple[Stage, ...] = ("search", "confirm")
    assert isinstance(advance(simulated(1, 0.5), NONE, RULE, ended=both), Draw)
    assert advance(simulated(2, 0.5), NONE, RULE, ended=SEARCH) == Draw("confirm", 3)
    end = advance(simulated(2, 0.5), simulated(2, 0.5, seed=1), RULE, ended=both)
    assert isinstance(end, Conclusion)
    assert (end.outcome, end.stage) == ("accept", "confirm")


@pytest.mark.parametrize("confirmed", [0, 1])
def test_running_out_of_time_never_accepts_without_confirmation(confirmed: int) -> None:
    end = advance(
        simulated(3, 0.5), simulated(confirmed, 0.5, seed=1), RULE, ended=("search", "confirm")
    )
    assert isinstance(end, Conclusion)
    assert (end.outcome, end.stage) == ("ambiguous", "search")
    assert "not confirmed" in end.reason


def test_bounds_of_two_processes_that_disagree_are_no_row_of_digits() -> None:
    two = Samples(simulated(1, 0.0).processes + simulated(1, 3.0, seed=1).processes)
    end = advance(two, NONE, RULE, ended=SEARCH)
    assert isinstance(end, Conclusion)
    assert end.decision.upper > 1000
    assert f"and {end.decision.upper:.0e}x, against" in end.reason
    assert (factor(0.0), factor(999.0), factor(8765801359.7)) == ("0.000", "999.000", "9e+09")


def test_a_look_is_not_taken_twice() -> None:
    """Time that ends right at an undecided look adds nothing to its error budget."""
    undecided = next(
        s
        for seed in range(50)
        if advance(s := simulated(3, 0.02, seed=seed, noise=0.04), NONE, RULE) == Draw("search", 3)
    )
    end = advance(undecided, NONE, RULE, ended=SEARCH)
    assert isinstance(end, Conclusion)
    assert end.outcome == "ambiguous"
    assert end.reason.startswith("the time budget ended early")
