"""Pages of the immune ledger: harm that fades, locks that grow, rent that use pays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.ecology import ledger
from esper.ecology.scars import scar_rent
from esper.ir.ecology import Ecology, Finding, Immunity, SlotLife, Terms, page_of
from esper.propose import Lyse, PruneUnits, WidenUnits

TERMS = Terms(lock=10, lock_growth=3.0, lock_most=50, half_life=20.0)


def _harm(tick: int) -> Finding:
    return Finding(tick=tick, outcome="harmful", change=0.5, batches=9)


def test_a_lock_grows_with_repetition_up_to_a_limit() -> None:
    page = Immunity()
    ends = []
    for tick in (0, 100, 200, 300):
        page = ledger.noted(page, _harm(tick), TERMS)
        ends.append(page.critical_until - tick)
    assert ends == [10, 30, 50, 50]
    assert [a.tick for a in page.antibodies] == [0, 100, 200, 300]
    assert {a.against for a in page.antibodies} == {"lyse"}


@pytest.mark.parametrize("outcome", ["harmless", "undecided"])
def test_what_does_no_harm_only_leaves_a_finding(outcome: str) -> None:
    finding = Finding.model_validate({"tick": 3, "outcome": outcome, "change": 0.0, "batches": 4})
    assert ledger.noted(Immunity(), finding, TERMS) == Immunity(probes=(finding,))


def test_only_the_latest_findings_are_remembered() -> None:
    page = Immunity()
    for tick in range(20):
        page = ledger.noted(page, Finding(tick=tick, outcome="undecided", change=0.0), TERMS)
    assert [f.tick for f in page.probes] == list(range(12, 20))


def test_antibodies_halve_and_are_against_something() -> None:
    page = ledger.charged(Immunity(), 0, "widen-units", TERMS)
    assert [ledger.weight(page, tick) for tick in (0, 20, 40)] == [1.0, 0.5, 0.25]
    assert ledger.weight(page, 0, "widen-units") == 1.0
    assert ledger.weight(page, 0, "lyse") == 0.0
    anything = ledger.charged(page, 20, "", TERMS)
    assert ledger.weight(anything, 20, "lyse") == 1.0
    assert ledger.weight(anything, 20, "widen-units") == 1.5


@given(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 300), st.integers(0, 300))
def test_harm_never_grows_by_waiting(ticks: list[int], now: int, wait: int) -> None:
    page = Immunity()
    for tick in ticks:
        page = ledger.charged(page, tick, "", TERMS)
    later = max([now, *ticks])
    assert ledger.weight(page, later + wait) <= ledger.weight(page, later)
    faded = ledger.faded(page, later + wait)
    left = 0.0 if faded is None else ledger.weight(faded, later + wait)
    assert left == pytest.approx(ledger.weight(page, later + wait), abs=len(ticks) / 64)


def test_a_page_on_which_nothing_is_left_is_forgotten() -> None:
    page = ledger.leased(ledger.charged(Immunity(), 0, "", TERMS), "tamiyo", 30)
    page = page.model_copy(update={"cooldown_until": 5, "critical_until": 6})
    assert ledger.faded(page, 4) == page
    assert ledger.faded(page, 100) == Immunity(antibodies=page.antibodies)
    assert ledger.faded(page, 20 * 7) is None


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50))
def test_debt_is_rent_less_use_and_never_negative(rent: float, use: float, a: int, b: int) -> None:
    page = ledger.settled(Immunity(), a, rent, use)
    page = ledger.settled(page, a + b, rent, use)
    assert page.settled == a + b
    assert page.debt == pytest.approx(max((rent - use) * (a + b), 0.0))
    assert ledger.settled(page, a + b, rent, use) == page  # the same tick costs nothing again


def test_use_is_what_the_last_decided_probe_says_and_fades() -> None:
    page = ledger.noted(Immunity(), _harm(10), TERMS)
    assert ledger.use(page, 10, TERMS) == 0.5
    assert ledger.use(page, 30, TERMS) == 0.25
    page = ledger.noted(page, Finding(tick=30, outcome="undecided", change=9.0), TERMS)
    assert ledger.use(page, 30, TERMS) == 0.25
    page = ledger.noted(page, Finding(tick=31, outcome="harmless", change=-1.0), TERMS)
    assert ledger.use(page, 31, TERMS) == 0.0
    assert ledger.use(Immunity(), 31, TERMS) == 0.0


def test_rents_ramp_with_age() -> None:
    terms = Terms(parameter_price=2.0, flop_price=1.0, rent_ramp=10, scar_rent=0.1, scar_ramp=4)
    assert ledger.rent(0.5, 0.25, terms) == 1.25
    assert [ledger.rent(0.5, 0.25, terms, age) for age in (0, 5, 10, 99)] == [0, 0.625, 1.25, 1.25]
    assert [scar_rent(age, terms) for age in (0, 2, 4, 9)] == [0.0, 0.05, 0.1, 0.1]


def test_pages_of_units_and_of_slots() -> None:
    assert ledger.pages("axis:a/neurons", (1, 7)) == ("axis:a/neurons[1]", "axis:a/neurons[7]")
    assert ledger.blamed(PruneUnits(axis="axis:a/neurons", units=(3,))) == ("axis:a/neurons[3]",)
    assert ledger.blamed(WidenUnits(axis="axis:a/neurons", count=3)) == ("axis:a/neurons",)
    assert ledger.blamed(Lyse(target="phage:a")) == ("phage:a",)
    assert page_of("slot:a.out") == page_of(page_of("slot:a.out")) == "slot:a.out/immunity"


def test_a_slot_has_a_stage_and_a_page() -> None:
    ecology = Ecology(tick=4, terms=TERMS)
    ecology.set("slot:a.out", SlotLife(stage="holding"))
    ecology.set(page_of("slot:a.out"), ledger.charged(Immunity(), 4, "plant-seed", TERMS))
    again = Ecology.parse(json.loads(json.dumps(ecology.data())))
    assert again.slot("slot:a.out").stage == "holding"
    assert ledger.weight(again.immunity("slot:a.out"), 4) == 1.0
    assert list(again.slots()) == ["slot:a.out"]
    assert list(again.pages()) == ["slot:a.out/immunity"]
    assert again.terms == TERMS
    assert Ecology.parse({"tick": 0, "lives": {}}).terms == Terms()


def test_evidence_is_fresh_large_enough_harmless_and_of_the_same_units() -> None:
    terms = Terms(evidence_age=10, evidence_batches=8)
    good = Finding(tick=5, outcome="harmless", change=0.0, batches=8, units=(2, 1))
    page = Immunity(probes=(good,))
    assert ledger.evidence(page, (1, 2), 15, terms) == good
    assert ledger.evidence(page, (1, 2), 16, terms) is None
    assert ledger.evidence(page, (1,), 15, terms) is None
    assert ledger.evidence(page, (1, 2), 15, Terms(evidence_batches=9)) is None
    later = Immunity(probes=(good, good.model_copy(update={"outcome": "undecided"})))
    assert ledger.evidence(later, (1, 2), 15, terms) is None
