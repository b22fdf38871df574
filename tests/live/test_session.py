"""Boundaries: the only place where anything may change, and what happens at them."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.ir.model import Model
from esper.live.checkpoint import copied
from tests.live.training import CUT, DROP, NARROW, Net, ProposalBase, batch, step, traced


def _session(**options: Any) -> tuple[esper.Session, torch.Generator]:
    model = traced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return esper.Session(model, optimizer, **options), torch.Generator().manual_seed(3)


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.all_tensors()}


# -- the only place --------------------------------------------------------------------------------


def test_outside_a_boundary_every_attempt_raises() -> None:
    session, _ = _session()
    before = str(session.model)
    with pytest.raises(esper.BoundaryError, match=r"session\.boundary\(\)"):
        esper.PassManager(session.model).apply(CUT)
    with pytest.raises(esper.BoundaryError, match=r"session\.boundary\(\)"):
        session.submit(CUT)
    with session.boundary() as boundary:
        pass
    with pytest.raises(esper.BoundaryError, match="not open"):
        boundary.submit(CUT)
    assert str(session.model) == before


def test_inside_one_only_the_boundary_changes_the_model() -> None:
    session, _ = _session()
    with session.boundary():
        with pytest.raises(esper.BoundaryError):
            esper.PassManager(session.model).apply(CUT)
        with pytest.raises(esper.BoundaryError, match="already"), session.boundary():
            pass


def test_a_boundary_is_used_once() -> None:
    session, _ = _session()
    boundary = session.boundary()
    with boundary:
        pass
    with pytest.raises(esper.BoundaryError, match="over"), boundary:
        pass


def test_copies_are_free() -> None:
    session, _ = _session()
    smaller, record = session.model.apply(CUT)
    assert record.kind == "passed"
    assert smaller.anatomy.axes[CUT.axis].size == 9
    assert session.model.anatomy.axes[CUT.axis].size == 12


def test_a_model_opens_again_when_its_session_ends() -> None:
    session, _ = _session()
    model = session.model
    session.close()
    assert esper.PassManager(model).apply(CUT).kind == "passed"
    esper.Session(model, torch.optim.SGD(model.parameters(), lr=0.1))
    gc.collect()
    assert model.closed == ""


def test_what_is_no_session() -> None:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    with pytest.raises(esper.EsperError, match=r"esper\.trace"):
        esper.Session(Net(), optimizer)  # type: ignore[arg-type]
    session, _ = _session()
    with pytest.raises(esper.EsperError, match="belongs to a session"):
        esper.Session(session.model, session.optimizer)
    with pytest.raises(esper.EsperError, match="needs an optimizer"):
        esper.Session(traced(), [])


def test_refusals_are_records_and_change_nothing() -> None:
    session, _ = _session()
    before = _tensors(session.model)
    frozen = esper.propose.PruneUnits(axis="axis:head/neurons", units=(0,))
    with session.boundary() as boundary:
        (record,) = boundary.submit(frozen)
        assert boundary.plan(CUT) is not None
    assert (record.kind, record.code) == ("missed", "frozen-axis")
    assert session.tick == 1
    for name, tensor in session.model.all_tensors():
        assert torch.equal(tensor, before[name])


# -- shadows ---------------------------------------------------------------------------------------


def test_averages_follow() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda average, live, _: torch.lerp(average, live, 0.1)
    )
    session = esper.Session(model, optimizer, ema=ema)
    generator = torch.Generator().manual_seed(0)
    proposals: tuple[ProposalBase, ...] = (CUT, NARROW, DROP)
    for proposal in proposals:
        step(model, optimizer, batch(generator))
        ema.update_parameters(model)
        whole: Model = copy.deepcopy(ema.module)  # type: ignore[assignment]
        with session.boundary() as boundary:
            assert boundary.submit(proposal)[0].kind == "passed"
        expected, _ = whole.apply(proposal)
        inputs = batch(generator)[0]
        ema.eval()
        assert torch.equal(ema(inputs), expected.eval()(inputs))
        ema.train()
    session.check()


def test_an_average_of_another_model_is_refused() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(esper.EsperError, match="copy of the traced model"):
        esper.Session(model, optimizer, ema=torch.optim.swa_utils.AveragedModel(Net()))


def test_a_scaler_between_unscale_and_update_is_no_boundary() -> None:
    model = traced(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    session = esper.Session(model, optimizer, scaler=scaler)
    inputs, targets = batch(torch.Generator().manual_seed(0), torch.float32)
    loss = torch.nn.functional.cross_entropy(model(inputs), targets)
    torch.autograd.backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(esper.BoundaryError, match=r"scaler\.update"), session.boundary():
        pass
    scaler.step(optimizer)
    scaler.update()
    with session.boundary() as boundary:
        assert boundary.submit(CUT)[0].kind == "passed"


def test_accumulated_gradients_follow_a_cut() -> None:
    session, generator = _session()
    model, optimizer = session.model, session.optimizer
    first, second = batch(generator), batch(generator)
    reference = copy.deepcopy(model)
    smaller, _ = reference.apply(CUT)

    def backward(network: Model, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        loss = torch.nn.functional.cross_entropy(network(inputs[0]), inputs[1])
        torch.autograd.backward(loss)

    backward(model, first)
    gradient = model.get_parameter("block.0.weight").grad
    assert gradient is not None
    with session.boundary() as boundary:
        boundary.submit(CUT)
    kept = [unit for unit in range(12) if unit not in CUT.units]
    own = model.get_parameter("block.0.weight").grad
    assert own is not None
    assert torch.equal(own, gradient[kept])
    backward(model, second)
    backward(smaller, second)
    other = smaller.get_parameter("block.0.weight").grad
    assert other is not None
    # Batch statistics moved between the two, gradients of the second half did not.
    torch.testing.assert_close(own - gradient[kept], other)
    optimizer.step()


# -- checkpoints -----------------------------------------------------------------------------------


def _run(session: esper.Session, generator: torch.Generator, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(step(session.model, session.optimizer, batch(generator)))
        for scheduler in session.schedulers:
            scheduler.step()
        for average in session.averages:
            average.update_parameters(session.model)
        with session.boundary(losses[-1]) as boundary:
            if session.tick == 3:
                boundary.submit(CUT, policy=esper.StatePolicy(warmup=4))
            if session.tick == 6:
                boundary.submit(DROP)
    return losses


def _whole(governor: bool = True) -> esper.Session:
    model = traced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)
    ema = torch.optim.swa_utils.AveragedModel(model)
    return esper.Session(
        model,
        optimizer,
        scheduler=scheduler,
        ema=ema,
        governor=esper.Governor() if governor else None,
    )


@pytest.mark.parametrize("at", [0, 3, 4, 5, 7, 9])
def test_a_run_resumes_bit_for_bit_from_any_boundary(at: int, tmp_path: Path) -> None:
    session, generator = _whole(), torch.Generator().manual_seed(5)
    _run(session, generator, at)
    torch.save(
        {"session": session.state_dict(), "data": generator.get_state()}, tmp_path / "run.pt"
    )
    expected = _run(session, generator, 10 - at)
    noise = torch.rand(3)

    again, data = _whole(), torch.Generator()
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    data.set_state(saved["data"])
    again.load_state_dict(saved["session"])
    assert again.tick == at
    assert _run(again, data, 10 - at) == expected
    assert torch.equal(torch.rand(3), noise)
    assert str(again.model) == str(session.model)
    averages = zip(again.averages[0].parameters(), session.averages[0].parameters(), strict=True)
    tensors = zip(again.model.all_tensors(), session.model.all_tensors(), strict=True)
    for own, other in [*((a, b) for (_, a), (_, b) in tensors), *averages]:
        assert torch.equal(own, other)
    with again.boundary() as boundary:
        assert boundary.submit(NARROW)[0].kind == "passed"


def test_a_state_of_another_session_is_refused_and_changes_nothing() -> None:
    session, _ = _session()
    state = copied(session.state_dict())
    whole = _whole()
    before = _tensors(whole.model)
    damages: list[tuple[dict[str, Any], str]] = [
        ({"format": 9}, "format 9"),
        ({}, "0 schedulers, this session 1"),
        ({"schedulers": [{}], "averages": [{}, {}]}, "2 averages"),
        ({"schedulers": [{}], "averages": [{}], "scaler": {}}, "scaler"),
        ({"schedulers": [{}], "averages": [{}], "model": {}}, "no model"),
    ]
    for damage, sentence in damages:
        with pytest.raises(esper.EsperError, match=sentence):
            whole.load_state_dict({**state, **damage})
        for name, tensor in whole.model.all_tensors():
            assert torch.equal(tensor, before[name])


# -- the governor ----------------------------------------------------------------------------------


def test_a_broken_loss_returns_to_the_keyframe() -> None:
    session, generator = _session(governor=esper.Governor(), keyframe_every=2)
    _run(session, generator, 2)
    with session.boundary(0.7):
        kept, text = _tensors(session.model), str(session.model)
        optimizer = copied(session.state_dict()["optimizers"])
    for _ in range(1):
        step(session.model, session.optimizer, batch(generator))
    with session.boundary(float("nan")) as boundary:
        assert boundary.rolled_back == "the loss is nan"
        assert session.tick == 2
    assert str(session.model) == text
    for name, tensor in session.model.all_tensors():
        assert torch.equal(tensor, kept[name])
    found = session.state_dict()["optimizers"]
    for name, values in optimizer[0]["state"].items():
        for key, value in values.items():
            assert torch.equal(found[0]["state"][name][key], value)


def test_a_change_is_undone_with_its_harm() -> None:
    session, generator = _session(governor=esper.Governor())
    _run(session, generator, 2)
    before = str(session.model)
    with session.boundary(0.5) as boundary:
        boundary.submit(DROP)
    assert str(session.model) != before
    with session.boundary(float("inf")) as boundary:
        assert "inf" in boundary.rolled_back
    assert str(session.model) == before
    charged = session.model.ecology.immunity("phage:block")
    assert [(a.harm, a.against) for a in charged.antibodies] == [(1.0, "drop-region")]


def test_the_governor_gives_up_in_the_end() -> None:
    session, generator = _session(governor=esper.Governor(limit=2))
    _run(session, generator, 1)
    for _ in range(2):
        with session.boundary(float("nan")):
            pass
    with pytest.raises(esper.BoundaryError, match="broke 3 times"), session.boundary(float("nan")):
        pass
    with session.boundary(0.5):
        pass  # a session that raised can go on
