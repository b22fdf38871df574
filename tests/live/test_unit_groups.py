"""Groups of units: which are seen, and that their figures are those of the cut they stand for."""

from __future__ import annotations

import pytest
import torch

import esper
from esper.ecology.ledger import unit_pages
from esper.ir.ecology import Immunity
from esper.live.observation import Row
from esper.live.unit_groups import SHARE, UnitGroup
from esper.propose import Lyse, NoteProbe, PruneUnits
from tests.live.training import batch, step, traced

NEURONS = "axis:block.0/neurons"
DEAD = 4


def _session(**options: object) -> esper.Session:
    model = traced()
    with torch.no_grad():
        model.get_parameter("block.0.bias")[DEAD] = -99.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return esper.Session(model, optimizer, signals_every=2, **options)  # type: ignore[arg-type]


def _train(session: esper.Session, steps: int) -> None:
    data = torch.Generator().manual_seed(3)
    for _ in range(steps):
        with session.boundary(step(session.model, session.optimizer, batch(data))):
            pass


def _groups(session: esper.Session, axis: str = NEURONS) -> dict[tuple[int, ...], Row]:
    with session.boundary() as boundary:
        rows = [row for row in boundary.observation.rows if row.kind == "units"]
    parsed = {UnitGroup.parse(row.id): row for row in rows}
    return {group.units: row for group, row in parsed.items() if group.axis == axis}


def _note(units: tuple[int, ...], outcome: str = "harmless") -> NoteProbe:
    return NoteProbe.model_validate(
        {"target": NEURONS, "units": units, "outcome": outcome, "change": 0.0, "batches": 20}
    )


def test_the_least_missed_are_seen_once_signals_are_known() -> None:
    session = _session()
    assert _groups(session) == {}
    _train(session, 6)
    (units,) = _groups(session)
    saliency = session.signals.units(NEURONS).saliency
    assert len(units) == 12 // SHARE == 1
    assert units == (DEAD,) == (int(saliency.argmin()),)


def test_a_proven_group_stays_in_sight_until_its_evidence_is_old() -> None:
    session = _session(terms=esper.ir.ecology.Terms(evidence_age=5))
    _train(session, 4)
    with session.boundary() as boundary:
        boundary.submit(_note((3, 7)), _note((1, 2), "undecided"))
    seen = _groups(session)
    assert set(seen) == {(3, 7), (DEAD,)}
    assert seen[3, 7].figures["found.harmless"] == 1
    _train(session, 5)
    assert set(_groups(session)) == {(DEAD,)}


def test_units_that_are_gone_are_seen_no_more() -> None:
    session = _session()
    _train(session, 4)
    with session.boundary() as boundary:
        boundary.submit(_note((3, 7)), PruneUnits(axis=NEURONS, units=(7,)))
    assert set(_groups(session)) == {(DEAD,)}


def test_figures_are_those_of_the_cut() -> None:
    session = _session()
    _train(session, 4)
    with session.boundary() as boundary:
        boundary.submit(_note((3, 7)))
    page = Immunity(debt=0.5)
    session.model.ecology.set("phage:block", page)
    figures = _groups(session)[3, 7].figures
    phage = session.model.anatomy.phages["phage:block"].parameters
    signals = session.signals.units(NEURONS)
    at = [signals.unit_ids.index(unit) for unit in (3, 7)]
    before = sum(p.numel() for p in session.model.parameters())
    with session.boundary() as boundary:
        (record,) = boundary.submit(Lyse(target=NEURONS, units=(3, 7)))
    assert record.kind == "passed"
    gone = before - sum(p.numel() for p in session.model.parameters())
    assert figures["parameters"] == gone
    assert figures["debt"] == pytest.approx(0.5 * gone / phage)
    assert figures["saliency"] == pytest.approx(float(signals.saliency[at].sum()))
    assert figures["units"] == 2


def test_harm_of_one_unit_is_harm_of_the_group() -> None:
    session = _session()
    _train(session, 4)
    with session.boundary() as boundary:
        boundary.submit(_note((DEAD,), "harmful"))
    figures = _groups(session)[(DEAD,)].figures
    (page,) = unit_pages(NEURONS, (DEAD,))
    assert figures["harm"] > 0.9
    until = session.model.ecology.immunity(page).critical_until
    assert figures["critical"] == until - session.tick + 1  # seen a tick ago


def test_names_are_read_as_they_are_written() -> None:
    group = UnitGroup(NEURONS, (3, 7))
    assert UnitGroup.parse(group.id) == group
    with pytest.raises(ValueError, match="names no units"):
        UnitGroup.parse("phage:block")
