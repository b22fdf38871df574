"""Probes at boundaries: paired, reproducible, without a trace in the live model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.ecology.betting import Rule, judge
from esper.ecology.scars import scars
from esper.ir.ecology import Immunity, Terms
from esper.live.checkpoint import copied
from esper.live.clinic import Part
from esper.propose import ForgetScar, Lyse, NoteProbe, PruneUnits, Sedate
from esper.recorder.log import Log
from tests.live.training import batch, step, traced
from tests.snapshots import assert_same, snapshot

NEURONS = "axis:block.0/neurons"
Pair = tuple[torch.Tensor, torch.Tensor]
# What the block is worth is far above this margin, what one dead neuron is worth far below.
RULE = Rule(margin=0.02, most=40)


def _loss(model: Any, pair: Pair) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(pair[0]), pair[1])


def _held(count: int = 40) -> list[Pair]:
    generator = torch.Generator().manual_seed(99)
    return [batch(generator) for _ in range(count)]


def _session(**options: Any) -> esper.Session:
    """The block does much, and its neuron 3 nothing."""
    model = traced()
    with torch.no_grad():
        model.get_parameter("block.2.weight").mul_(4)
        model.get_parameter("block.2.weight")[:, 3] = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    generator = torch.Generator().manual_seed(3)
    step(model, optimizer, batch(generator))
    with torch.no_grad():
        model.get_parameter("block.2.weight")[:, 3] = 0
    return esper.Session(model, optimizer, **options)


def _needed(session: esper.Session) -> None:
    """Labels are what the model says, so whatever changes its outputs does harm."""
    model = session.model
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(20)


def _agreeing(session: esper.Session, count: int = 40) -> list[Pair]:
    session.model.eval()
    with torch.no_grad():
        pairs = [(x, session.model(x).argmax(1)) for x, _ in _held(count)]
    session.model.train()
    return pairs


def test_a_probe_finds_harm_and_harmlessness_and_leaves_no_trace() -> None:
    session = _session(terms=Terms(lock=7))
    _needed(session)
    held = _agreeing(session)
    before, optimizer = snapshot(session.model), copied(session.state_dict()["optimizers"])
    random = torch.get_rng_state()
    with session.boundary() as boundary:
        block = boundary.probe("phage:block", held, loss=_loss, rule=RULE)
        dead = session.probe(NEURONS, held, loss=_loss, units=[3], rule=RULE)
        after = snapshot(session.model)
        again = boundary.probe("phage:block", held, loss=_loss, rule=RULE)
    assert (block.outcome, dead.outcome) == ("harmful", "harmless")
    assert block.change > RULE.margin
    assert dead.change == 0.0
    assert block.batches < len(held)
    assert dead.batches < len(held)
    assert block.record is not None
    assert block.record.kind == "passed"
    assert (again.outcome, again.code, again.batches) == ("refused", "critical", 0)
    assert again.record is None
    del before["history"], after["history"]
    assert_same(before, after)
    assert torch.equal(torch.get_rng_state(), random)
    for name, values in session.state_dict()["optimizers"][0]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, optimizer[0]["state"][name][key])
    page = session.model.ecology.immunity("phage:block")
    assert page.critical_until == 7
    assert [f.outcome for f in page.probes] == ["harmful"]
    assert session.model.ecology.immunity(f"{NEURONS}[3]").probes[0].units == (3,)


def test_figures_are_those_of_the_differences() -> None:
    session = _session()
    held = _held(6)
    cut, _ = session.model.apply(PruneUnits(axis=NEURONS, units=(1, 4)))
    with session.boundary() as boundary:
        found = boundary.probe(NEURONS, held, loss=_loss, units=(1, 4), note=False, rule=RULE)
        assert boundary.records == []
    session.model.eval(), cut.eval()
    differences = [float((_loss(cut, pair) - _loss(session.model, pair)).detach()) for pair in held]
    expected = judge(differences, RULE)
    assert found.outcome == expected.outcome
    assert found.change == pytest.approx(expected.mean)
    assert found.error == pytest.approx(expected.error)
    assert session.model.ecology.lives == {}


def test_both_see_the_same_random_numbers_and_draws_are_forgotten() -> None:
    session = _session()
    noise: list[float] = []

    def noisy(model: Any, pair: Pair) -> torch.Tensor:
        noise.append(float(torch.rand(())))
        return _loss(model, pair) + noise[-1]

    def shuffled() -> Iterator[Pair]:
        for index in torch.randperm(8).tolist():
            yield _held(8)[index]

    state = torch.get_rng_state()
    with session.boundary() as boundary:
        found = boundary.probe(NEURONS, shuffled(), loss=noisy, units=(3,))
    assert found.change == pytest.approx(0.0, abs=1e-12)
    assert noise[0::2] == noise[1::2]
    assert len(set(noise)) == 8
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_batches_are_drawn_than_needed() -> None:
    session = _session()
    drawn: list[int] = []

    def counted() -> Iterator[Pair]:
        for index, pair in enumerate(_held(64)):
            drawn.append(index)
            yield pair

    with session.boundary() as boundary:
        found = boundary.probe(NEURONS, counted(), loss=_loss, units=(3,), rule=RULE)
        assert (found.outcome, found.batches) == ("harmless", len(drawn))
        undecided = boundary.probe(
            NEURONS, counted(), loss=_loss, units=(1,), rule=Rule(margin=1e-9, most=5)
        )
    assert len(drawn) == found.batches + 5
    assert undecided.outcome in ("undecided", "harmful")


def test_an_awake_loss_that_is_broken_decides_nothing() -> None:
    session = _session()

    def broken(model: Any, pair: Pair) -> float:
        model(pair[0])
        return math.nan

    with session.boundary() as boundary:
        found = boundary.probe("phage:block", _held(9), loss=broken)
    assert (found.outcome, found.batches) == ("undecided", 0)
    assert "the awake model's loss is nan on batch 0" in found.reason


def test_a_loss_must_call_the_model_that_it_is_given() -> None:
    session = _session()
    sentence = "did not call the model that it was given"
    with pytest.raises(esper.EsperError, match=sentence), session.boundary() as boundary:
        boundary.probe("phage:block", _held(4), loss=lambda _, p: _loss(session.model, p))
    assert session.tick == 0


def test_probes_are_held_at_boundaries() -> None:
    session = _session()
    with pytest.raises(esper.BoundaryError, match=r"boundary\.probe"):
        session.probe("phage:block", _held(1), loss=_loss)
    with pytest.raises(esper.BoundaryError, match=r"boundary\.sweep"):
        session.sweep(["phage:block"], _held(1), loss=_loss)
    with session.boundary() as boundary:
        pass
    with pytest.raises(esper.BoundaryError, match="not open"):
        boundary.probe("phage:block", _held(1), loss=_loss)


def test_a_sweep_ranks_by_paired_change_and_decides_nothing() -> None:
    session = _session()
    _needed(session)
    held = _agreeing(session, 4)
    session.model.ecology.set("axis:stem/neurons", Immunity(critical_until=9))
    before = snapshot(session.model)
    with session.boundary():
        targets: list[Part] = [
            "phage:block",
            (NEURONS, [3]),
            (NEURONS, [1]),
            ("axis:stem/neurons", [0]),
        ]
        lines = session.sweep(targets, held, loss=_loss)
    assert_same(before, snapshot(session.model))
    assert (lines[0].units, lines[0].change) == ((3,), 0.0)
    assert lines[0].batches == 4
    assert [line.target for line in lines[2:]] == ["phage:block", "axis:stem/neurons"]
    assert "locked until tick 9" in lines[-1].refused
    assert "phage:block" not in session.model.ecology.lives
    changes = [line.change for line in lines]
    assert changes == sorted(changes)


def test_no_step_is_made_on_a_sedated_model() -> None:
    session = _session()
    before = str(session.model)
    with session.boundary() as boundary:
        boundary.submit(Sedate(target="phage:block"), PruneUnits(axis=NEURONS, units=(1,)))
        assert "gate" in str(session.model)
    assert [(r.kind, r.code) for r in boundary.records] == [
        ("passed", "applied"),
        ("missed", "sedated"),
        ("passed", "applied"),
    ]
    assert str(session.model) == before
    assert session.model.ecology.lives == {}


def test_a_probe_compiles_nothing() -> None:
    torch._dynamo.reset()
    session = _session()
    session.compile(backend="eager")
    generator = torch.Generator().manual_seed(1)
    step(session.model, session.optimizer, batch(generator))
    compiled = len(session.compilations)
    assert compiled
    with session.boundary() as boundary:
        boundary.probe(NEURONS, _held(12), loss=_loss, units=(3,))
    step(session.model, session.optimizer, batch(generator))
    assert len(session.compilations) == compiled
    session.close()


def test_the_flight_record_tells_the_whole_story(tmp_path: Path) -> None:
    path = tmp_path / "run.esperlog"
    session = _session(recorder=path)
    with session.boundary() as boundary:
        boundary.probe(NEURONS, _held(), loss=_loss, units=(3,), rule=RULE, proposer="emrakul")
        boundary.submit(Lyse(target=NEURONS, units=(3,), proposer="emrakul"))
    with session.boundary() as boundary:
        boundary.sweep(["phage:block"], _held(2), loss=_loss, proposer="emrakul")
    session.close()
    log = Log(path)
    started, ended, ablated = (e for e in log if e.kind == "probe")
    assert [e.payload.phase for e in (started, ended, ablated)] == ["started", "ended", "ended"]
    assert [e.payload.probe for e in (ended, ablated)] == ["sedation", "ablation"]
    assert ended.payload.decision == "harmless"
    assert ended.payload.figures["evidence_harmless"] > -math.log(0.05)
    assert ended.cause == started.number
    assert ended.agent == started.agent == "emrakul"
    note = next(e for e in log if e.kind == "proposal")
    assert note.cause == ended.number
    assert note.payload.proposal["type"] == "note-probe"
    assert {e.payload.result for e in log if e.kind == "verdict"} == {"passed"}


def _life(session: esper.Session, generator: torch.Generator, until: int) -> list[float]:
    """Probe, lyse, bear a scar, forget it."""
    losses = []
    while session.tick < until:
        losses.append(step(session.model, session.optimizer, batch(generator)))
        with session.boundary(losses[-1]) as boundary:
            if session.tick == 1:
                note = NoteProbe(target="phage:block", outcome="harmless", change=0.0, batches=9)
                boundary.submit(note)
            if session.tick == 2:
                assert boundary.submit(Lyse(target="phage:block"))[0].kind == "passed"
            for slot in scars(session.model.ecology):
                boundary.submit(ForgetScar(slot=slot))
    return losses


@pytest.mark.parametrize("at", [2, 4])
def test_a_run_with_a_scar_resumes_bit_for_bit(at: int, tmp_path: Path) -> None:
    terms = Terms(scar_expiry=4, quarantine=2)
    session, generator = _session(terms=terms), torch.Generator().manual_seed(5)
    _life(session, generator, at)
    state = {"session": session.state_dict(), "data": generator.get_state()}
    torch.save(state, tmp_path / "run.pt")
    expected = _life(session, generator, 8)
    again, data = _session(), torch.Generator()
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    data.set_state(saved["data"])
    again.load_state_dict(saved["session"])
    assert again.model.ecology.terms == terms
    assert _life(again, data, 8) == expected
    assert str(again.model) == str(session.model)
    assert again.model.ecology.data() == session.model.ecology.data()
    assert again.events.numbers(8) == session.events.numbers(8)
    assert scars(session.model.ecology) == {}
    kinds = [event.kind for event in session.events.events() if event.result == 1]
    assert kinds == ["note-probe", "lyse", "forget-scar"]
