"""Emrakul trims: units that nothing misses go on evidence; those that matter stay, locked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import esper
from esper.agents import Emrakul, HeldOut
from esper.ecology.betting import Rule
from esper.ir.ecology import Terms
from esper.propose import Lyse, NoteProbe, ProposalBase
from tests.live.training import batch, step, traced

NEURONS = "axis:block.0/neurons"
DEAD = (2, 9)


def _loss(model: Any, items: Any) -> torch.Tensor:
    return cross_entropy(model(items[0]), items[1])


def _batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Many items, so that little is left to chance."""
    x = torch.randn(320, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()


def _run(steps: int, dead: tuple[int, ...] = DEAD) -> tuple[esper.Session, list[ProposalBase]]:
    """Training with Emrakul, who may cut neurons of the block and nothing else; what she did."""
    model = traced()
    model.pin("phage:*")
    for axis in model.anatomy.axes:
        if axis != NEURONS:
            model.pin(axis)
    with torch.no_grad():
        bias = model.get_parameter("block.0.bias")
        bias.fill_(1.0)  # all others are awake
        bias[list(dead)] = -99.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    terms = Terms(evidence_batches=4)
    session = esper.Session(model, optimizer, signals_every=2, terms=terms)
    data = torch.Generator().manual_seed(3)
    held = [_batch(i) for i in range(24)]
    rule = Rule(margin=1e-4, error=0.2)
    emrakul = Emrakul(every=4, warm=8, young=9.0, spike=9.0, held_out=HeldOut(held, _loss, rule))
    done: list[ProposalBase] = []
    for _ in range(steps):
        loss = step(session.model, optimizer, batch(data))
        with session.boundary(loss) as boundary:
            boundary.submit(*emrakul.propose(boundary.observation))
        for record in boundary.records:
            assert record.kind == "passed", record.line()
            assert record.proposal is not None
            done.append(record.proposal)
    return session, done


def test_what_nothing_misses_goes_first() -> None:
    session, done = _run(24)
    cut = [proposal.units for proposal in done if isinstance(proposal, Lyse)]
    assert cut[: len(DEAD)] == [(unit,) for unit in DEAD]
    axis = session.model.anatomy.axes[NEURONS]
    assert set(axis.unit_ids) == set(range(12)) - {unit for units in cut for unit in units}
    assert session.model.get_parameter("block.0.weight").shape[0] == axis.size


def test_what_goes_was_proven_and_what_is_missed_is_locked() -> None:
    session, done = _run(60, dead=())
    living = session.model.anatomy.axes[NEURONS].unit_ids
    notes = {p.units: p.outcome for p in done if isinstance(p, NoteProbe)}
    for proposal in done:
        if isinstance(proposal, Lyse):
            assert notes.pop(proposal.units) == "harmless"
    harmful = [units for units, outcome in notes.items() if outcome == "harmful"]
    assert harmful
    for (unit,) in harmful:
        assert unit in living
        page = session.model.ecology.immunity(f"{NEURONS}[{unit}]")
        assert page.critical_until > session.tick


def test_a_cut_rests_on_a_probe_of_the_same_units() -> None:
    """Nothing goes at the boundary at which it is first looked at."""
    session, _ = _run(9)
    (finding,) = {
        finding for page in session.model.ecology.pages().values() for finding in page.probes
    }
    assert finding.outcome == "harmless"
    assert finding.units == DEAD[:1]
    assert session.model.anatomy.axes[NEURONS].size == 12


def test_without_signals_no_units_are_weighed() -> None:
    model = traced()
    session = esper.Session(model, torch.optim.SGD(model.parameters(), 0.1), signals_every=0)
    agent = replace(Emrakul(every=1), held_out=HeldOut([], _loss))
    for _ in range(2):
        with session.boundary(1.0):
            pass
    with session.boundary(1.0) as boundary:
        assert [p.type for p in agent.propose(boundary.observation)] == ["tend-ledger"]
        assert not [row for row in boundary.observation.rows if row.kind == "units"]
