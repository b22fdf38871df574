"""What stage 2 counts, on runs written by hand."""

from __future__ import annotations

import pytest

from esper.demo.decay_figures import (
    NEAR,
    SHOCK,
    bad,
    modules,
    removals,
    rent,
    repeated,
    rises,
    units,
)
from esper.demo.runs import Change, Run

AT = 50


def _lysis(tick: int = AT, kind: str = "passed", cut: tuple[int, ...] = ()) -> Change:
    target = "axis:a/neurons" if cut else "phage:a"
    return Change(tick, "lyse", target, "emrakul", kind, "applied", cut)


def _probe(
    tick: int, outcome: str = "harmful", *, of: str = "phage:a", cut: tuple[int, ...] = ()
) -> Change:
    return Change(tick, "note-probe", of, "emrakul", "passed", "applied", cut, outcome)


def _run(after: float, *changes: Change, slope: float = 0.0) -> Run:
    """Losses that move by `after` with the removal, after a shock, and along a line besides."""
    losses = []
    for tick in range(2 * AT):
        shock = 9.0 if AT < tick <= AT + SHOCK else 0.0
        losses.append((float(tick), 2.0 + slope * tick + shock + (after if tick > AT else 0.0)))
    return Run(losses=losses, changes=list(changes))


def test_what_was_removed_is_counted() -> None:
    run = _run(0, _lysis(), _lysis(60, cut=(3, 7)), _lysis(61, "missed"))
    assert len(removals(run)) == 2
    assert (modules(run), units(run)) == (1, 2)


def test_a_rise_is_what_lasts_beyond_the_shock_and_the_trend() -> None:
    whole = _run(0.0, slope=-0.01)
    assert rises(_run(0.3, _lysis(), slope=-0.01), whole) == [pytest.approx(0.3)]
    assert rises(_run(0.0, _lysis(), slope=-0.01), whole) == [pytest.approx(0.0)]
    late = 2 * AT - SHOCK - 1  # nothing is known of what came after
    assert rises(_run(0.3, _lysis(late)), whole) == []
    assert NEAR < AT


def test_bad_probes_are_repeated_if_they_come_too_soon() -> None:
    run = _run(
        0, _probe(10), _probe(30), _probe(39, "harmless"), _probe(40, "undecided"), _probe(51)
    )
    assert bad(run) == 3
    assert repeated(run, 20) == 0  # a lock that opens at this tick is open
    assert repeated(run, 21) == 1
    assert repeated(run, 22) == 2


def test_groups_of_units_repeat_each_other_where_they_overlap() -> None:
    axis = "axis:a/neurons"
    first, other, overlapping = (
        _probe(tick, of=axis, cut=cut) for tick, cut in ((10, (1, 2)), (11, (3, 4)), (12, (2, 5)))
    )
    assert repeated(_run(0, first, other), 50) == 0
    assert repeated(_run(0, first, overlapping), 50) == 1


def test_rent_falls_with_parameters_and_work() -> None:
    whole = Run(parameters=100, per_step=2.0)
    assert rent(whole, whole) == 1.0
    assert rent(Run(parameters=50, per_step=2.0), whole) == 0.75
    assert rent(Run(parameters=50, per_step=1.0), whole) == 0.5


def test_a_region_around_what_is_critical_is_a_repetition() -> None:
    inner, outer = _probe(10, of="phage:a.b"), _probe(20)
    assert repeated(_run(0, inner, outer), 50) == 1
    assert repeated(_run(0, outer, inner), 50) == 0
    assert repeated(_run(0, inner, _probe(20, of="phage:a.bc")), 50) == 0
