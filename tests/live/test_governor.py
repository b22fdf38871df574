"""The governor's judgement of losses."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import esper
from esper.ir.ecology import Terms
from esper.live.checkpoint import copied
from esper.propose import DropRegion, NoteProbe, PruneUnits, TendLedger, WidenUnits
from esper.recorder.log import Log
from tests.live.training import CUT, batch, step, traced


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_broken_from_the_start(loss: float) -> None:
    assert "the loss is" in esper.Governor().judge(loss)


def test_a_jump_is_judged_once_there_is_a_past() -> None:
    governor = esper.Governor(least=8)
    for index in range(7):
        assert governor.judge(1.0 + 0.01 * index) == ""
    assert governor.judge(50.0) == ""  # too early to know
    for _ in range(20):
        governor.judge(1.0)
    assert "far above its recent median" in governor.judge(50.0)
    assert governor.judge(1.0) == ""


def test_a_broken_loss_does_not_join_the_window() -> None:
    governor = esper.Governor(least=4)
    for _ in range(10):
        governor.judge(1.0)
    for _ in range(100):
        assert governor.judge(9.0)
    assert set(governor.losses) == {1.0}


@given(st.lists(st.floats(0.9, 1.1), min_size=20, max_size=200))
def test_waves_are_no_breakdown(losses: list[float]) -> None:
    governor = esper.Governor()
    assert [governor.judge(loss) for loss in losses] == [""] * len(losses)
    assert len(governor.losses) <= governor.window


@given(st.lists(st.floats(1.0, 2.0), min_size=64, max_size=64))
def test_a_falling_loss_is_never_broken(noise: list[float]) -> None:
    governor = esper.Governor()
    for index, wave in enumerate(noise):
        assert governor.judge(wave * math.exp(-index / 20)) == ""


# -- what a rollback restores, and whom it charges -------------------------------------------------

WIDEN = WidenUnits(axis="axis:block.0/neurons", count=2)
FINDING = NoteProbe(target="phage:block", outcome="undecided", change=0.0, batches=2)


def _session(**options: Any) -> esper.Session:
    model = traced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=60)
    governor = esper.Governor()
    return esper.Session(model, optimizer, scheduler=scheduler, governor=governor, **options)


def _step(session: esper.Session, generator: torch.Generator) -> float:
    loss = step(session.model, session.optimizer, batch(generator))
    session.schedulers[0].step()
    return loss


# What has heard the loss of the boundary itself is no part of it.
_RESTORED = "model optimizers schedulers scaler averages warmups random generators".split()


def _state(session: esper.Session) -> dict[str, Any]:
    whole = session.state_dict()
    state: dict[str, Any] = copied({key: whole[key] for key in _RESTORED})
    del state["model"]["anatomy"]  # it holds the charge
    return {**state, "tick": session.tick}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def test_a_planted_nan_returns_to_the_last_good_boundary(tmp_path: Path) -> None:
    terms = Terms(half_life=4.0)
    session, generator = (
        _session(recorder=tmp_path / "run.esperlog", terms=terms),
        torch.Generator(),
    )
    for _ in range(3):
        with session.boundary(_step(session, generator)):
            pass
    loss = _step(session, generator)
    good = _state(session)
    with session.boundary(loss) as boundary:
        assert boundary.submit(CUT, WIDEN)[1].kind == "passed"
    with torch.no_grad():
        session.model.get_parameter("block.0.weight")[0, 0] = math.nan
    torch.rand(5), random.random(), np.random.random()
    with session.boundary(_step(session, generator)) as boundary:
        assert boundary.rolled_back == "the loss is nan"
        assert _equal(good, _state(session))
        # The same again is refused, others and other targets are not.
        records = boundary.submit(CUT, WIDEN, PruneUnits(axis=CUT.axis, units=(2,)))
    assert [(r.kind, r.code) for r in records] == [
        ("missed", "antibodies"),
        ("missed", "antibodies"),
        ("passed", "applied"),
    ]
    while session.tick < 8:  # by then the antibodies weigh less than half
        with session.boundary(_step(session, generator)) as boundary:
            pass
    with session.boundary(_step(session, generator)) as boundary:
        assert boundary.submit(CUT)[0].kind == "passed"
    session.close()
    log = Log(tmp_path / "run.esperlog")
    (rollback,) = (e.payload for e in log if e.kind == "rollback")
    first, second = [e for e in log if e.kind == "proposal"][:2]
    assert rollback.charged == second.number
    assert rollback.figures["charged_events"] == [*[first.number] * 3, second.number]
    assert rollback.figures["charged"] == [*(f"{CUT.axis}[{u}]" for u in CUT.units), WIDEN.axis]
    assert log.event(rollback.to).kind == "tick"
    assert log.event(rollback.to).tick == rollback.figures["to_tick"] == 3


def test_what_only_writes_is_not_charged_and_hides_nothing() -> None:
    session, generator = _session(), torch.Generator()
    with session.boundary(_step(session, generator)) as boundary:
        boundary.submit(DropRegion(region="phage:block"))
    with session.boundary(_step(session, generator)) as boundary:
        assert boundary.submit(TendLedger(), FINDING)[0].code == "no-change"
    with session.boundary(math.inf) as boundary:
        assert session.tick == 0  # before the drop, not before the note about it
    charged = session.model.ecology.pages()
    assert {name: [a.against for a in page.antibodies] for name, page in charged.items()} == {
        "phage:block": ["drop-region"]
    }


def test_antibodies_stay_when_training_breaks_again() -> None:
    session, generator = _session(), torch.Generator()
    with session.boundary(_step(session, generator)) as boundary:
        boundary.submit(CUT)
    for _ in range(2):
        with session.boundary(math.nan) as boundary:
            assert boundary.rolled_back
            assert session.tick == 0
        page = session.model.ecology.immunity(f"{CUT.axis}[1]")
        assert [a.against for a in page.antibodies] == ["prune-units"]
    assert [e.kind for e in session.events.events()].count("rollback") == 2
    with session.boundary(_step(session, generator)) as boundary:
        assert boundary.submit(CUT)[0].code == "antibodies"


def _fail(session: esper.Session, loss: float) -> None:
    with session.boundary(loss) as boundary:
        boundary.submit(CUT)
        raise KeyError


def test_what_a_failed_boundary_undid_is_not_charged() -> None:
    session, generator = _session(), torch.Generator()
    with session.boundary(_step(session, generator)) as boundary:
        boundary.submit(WIDEN)
    with pytest.raises(KeyError):
        _fail(session, _step(session, generator))
    assert [event.kind for event in session.events.events()] == ["widen-units"]
    with session.boundary(math.nan) as boundary:
        assert boundary.rolled_back
    assert session.model.ecology.pages() == {}
