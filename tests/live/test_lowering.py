"""Kernels in a session: training goes on as behind a mask, and what shadows a weight follows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.ir.model import Model
from esper.live.checkpoint import capture_optimizer
from esper.passbase import Context, Remark
from esper.propose import (
    FoldMask,
    LowerAttentionProjections,
    LowerLinear,
    ProposalBase,
    PruneUnits,
    RaiseKernel,
    SetMask,
)
from esper_passes.lower_kernels import LowerKernels
from esper_passes.raise_kernels import RaiseKernels
from tests import oracle
from tests.live.training import OPTIMIZERS, batch, step, traced
from tests.passes.attention_models import Attention

WEIGHT, NODE = "block.0.weight", "linear_1"
MASK = SetMask(tensor=WEIGHT, pattern="4:1:2")
LOWER = LowerLinear(node=NODE, rows=4, run=1)
RAISE = RaiseKernel(node=NODE)
Averaged = torch.optim.swa_utils.AveragedModel


@pytest.fixture(scope="module")
def network() -> Model:
    return traced()


def live(
    network: Model, name: str = "adamw", ema: bool = False
) -> tuple[esper.Session, torch.Generator]:
    """A session after three steps."""
    model = copy.deepcopy(network)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    average = Averaged(model) if ema else None
    generator = torch.Generator().manual_seed(1)
    session = esper.Session(model, optimizer, ema=average)
    train(session, generator, 3)
    return session, generator


def train(session: esper.Session, generator: torch.Generator, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(step(session.model, session.optimizer, batch(generator)))
        for average in session.averages:
            average.update_parameters(session.model)
    return losses


def submit(session: esper.Session, *proposals: ProposalBase) -> None:
    with session.boundary() as boundary:
        for record in boundary.submit(*proposals):
            assert record.kind == "passed", record.line()
    session.check()


def unpack(model: Model) -> Any:
    """The move from the packed weight back."""
    plan = model.plan(RAISE)
    assert isinstance(plan, esper.plan.Plan)
    return plan.state.ops[WEIGHT][0]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_packed_is_training_behind_the_mask(name: str, network: Model) -> None:
    packed, masked = live(network, name), live(network, name)
    parameter = packed[0].model.get_parameter(WEIGHT)
    submit(packed[0], MASK, LOWER)
    submit(masked[0], MASK)
    assert packed[0].model.get_parameter(WEIGHT) is parameter
    # Averages over rows and columns know of what is kept only; signs are those of rounding.
    if name not in ("adafactor", "rprop"):
        losses = [train(*run, 4) for run in (packed, masked)]
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-9, atol=1e-12)
        model, reference = packed[0].model, masked[0].model
        move = unpack(model)
        mask = reference.tensor(f"{WEIGHT}_mask")
        assert mask is not None
        wanted = reference.get_parameter(WEIGHT).detach().where(mask, 0)
        oracle.close(move(parameter.detach()), wanted, "weight")
        theirs = masked[0].optimizer.state[reference.get_parameter(WEIGHT)]
        for key, value in packed[0].optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor) and value.ndim == 2:
                oracle.close(move(value).where(mask, 0), theirs[key].where(mask, 0), key)
    submit(packed[0], RAISE)
    assert packed[0].model.get_parameter(WEIGHT) is parameter
    assert parameter.shape == (12, 10)
    assert all(torch.isfinite(torch.tensor(train(*packed, 3))))


def test_raised_weights_take_steps_of_a_sound_size(network: Model) -> None:
    """What had been dropped has no second moment; without one, Adam's first step would be huge."""
    session, generator = live(network)
    submit(session, MASK, LOWER)
    train(session, generator, 3)
    submit(session, RAISE)
    state = session.optimizer.state[session.model.get_parameter(WEIGHT)]
    dropped = session.model.get_parameter(WEIGHT) == 0
    assert bool(dropped.any())
    assert not state["exp_avg"][dropped].any()
    kept = state["exp_avg_sq"][~dropped].mean()
    assert bool((state["exp_avg_sq"][dropped] > 0.1 * kept).all())
    before = session.model.get_parameter(WEIGHT).detach().clone()
    train(session, generator, 1)
    moved = (session.model.get_parameter(WEIGHT).detach() - before).abs()
    assert float(moved[dropped].max()) < 0.02  # twice the learning rate


def test_averages_keep_the_runs_of_the_live_model(network: Model) -> None:
    session, generator = live(network, ema=True)
    (average,) = session.averages
    whole = copy.deepcopy(average.module)
    submit(session, MASK)
    masked = copy.deepcopy(average.module)
    submit(session, LOWER)
    inner = average.module
    assert torch.equal(
        inner.tensor(f"{WEIGHT}_index"),
        session.model.tensor(f"{WEIGHT}_index"),  # type: ignore[arg-type]
    )
    x = batch(generator)[0]
    oracle.close(inner.eval()(x), masked.eval()(x), "average")
    train(session, generator, 2)
    submit(session, RAISE)
    assert list(dict(whole.named_parameters())) == list(dict(inner.named_parameters()))


def test_an_average_that_is_not_zero_there_stops_the_change(network: Model) -> None:
    session, _ = live(network, ema=True)
    submit(session, MASK, FoldMask(tensor=WEIGHT))
    average: Any = session.averages[0].module
    with torch.no_grad():
        average.get_parameter(WEIGHT).add_(1)
    before = str(session.model)
    with session.boundary() as boundary:
        (record,) = boundary.submit(LOWER)
    assert record.kind == "failure"
    assert "is not zero where the live model's is" in record.reason
    assert str(session.model) == before


def test_an_exception_at_a_boundary_undoes_everything(network: Model) -> None:
    session, _ = live(network)
    model, optimizer = session.model, session.optimizer
    submit(session, MASK)
    for proposals in ((LOWER,), (LOWER, RAISE)):
        text, tensors = str(model), {n: t.detach().clone() for n, t in model.all_tensors()}
        state = copy.deepcopy(capture_optimizer(model, optimizer))
        members = {n: i.members for n, i in model.identities.axes.items()}

        def fail(proposals: tuple[ProposalBase, ...] = proposals) -> None:
            with session.boundary() as boundary:
                for record in boundary.submit(*proposals):
                    assert record.kind == "passed", record.line()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert str(model) == text
        assert all(torch.equal(t, tensors[n]) for n, t in model.all_tensors())
        assert {n: i.members for n, i in model.identities.axes.items()} == members
        after = capture_optimizer(model, optimizer)
        for name, values in state["state"].items():
            for key, value in values.items():
                assert torch.equal(after["state"][name][key], value)


def test_waiting_gradients_are_packed_too(network: Model) -> None:
    session, generator = live(network)
    submit(session, MASK)
    inputs, targets = batch(generator)
    loss = torch.nn.functional.cross_entropy(session.model(inputs), targets)
    torch.autograd.backward(loss)
    weight = session.model.get_parameter(WEIGHT)
    assert weight.grad is not None
    gradient = weight.grad.clone()
    submit(session, LOWER)
    assert weight.grad.shape == weight.shape
    assert torch.equal(unpack(session.model)(weight.grad), gradient)


def test_a_run_with_kernels_resumes(network: Model, tmp_path: Path) -> None:
    session, generator = live(network)
    submit(session, MASK, LOWER)
    train(session, generator, 2)
    torch.save({"session": session.state_dict(), "data": generator.get_state()}, tmp_path / "r.pt")
    expected = train(session, generator, 3)
    again, data = live(network)
    saved = torch.load(tmp_path / "r.pt", weights_only=True)
    data.set_state(saved["data"])
    again.load_state_dict(saved["session"])
    assert again.model.kernel_ops == ("esper::vnm_linear",)
    assert train(again, data, 3) == expected
    submit(again, RAISE)


def test_the_rest_of_the_model_goes_on_changing(network: Model) -> None:
    session, generator = live(network)
    submit(session, MASK, LOWER)
    assert session.model.check(PruneUnits(axis="axis:block.0/neurons", units=(1,))) is not None
    session.signals.watch("head.weight")
    train(session, generator, 2)
    assert session.signals["phage:block"].samples


def test_passes_run_at_a_boundary(network: Model) -> None:
    session, generator = live(network)
    submit(session, SetMask(tensor=WEIGHT, pattern="12:1:2"))
    context = Context()
    wishes = LowerKernels(choose="all").propose(session.model, context)
    found = [wish for wish in wishes if not isinstance(wish, Remark)]
    assert [wish.targets for wish in found] == [(NODE,)]
    submit(session, *found)
    train(session, generator, 1)
    back = [w for w in RaiseKernels().propose(session.model, context) if not isinstance(w, Remark)]
    submit(session, *back)
    assert not session.model.kernel_ops


# -- several weights as one ------------------------------------------------------------------------

PROJECT, PART = LowerAttentionProjections(node="linear"), RaiseKernel(node="linear")


@pytest.fixture(scope="module")
def attention() -> Model:
    torch.manual_seed(0)
    return esper.trace(Attention(2).double(), (torch.randn(2, 5, 16, dtype=torch.float64),))


def attend(session: esper.Session, steps: int) -> list[float]:
    """Steps on the same data in every session."""
    generator, losses = torch.Generator().manual_seed(7), []
    for _ in range(steps):
        x = torch.randn(4, 5, 16, generator=generator, dtype=torch.float64)
        session.optimizer.zero_grad()
        loss = (session.model(x) - x.roll(1, 1)).square().mean()
        torch.autograd.backward(loss)
        session.optimizer.step()
        for average in session.averages:
            average.update_parameters(session.model)
        losses.append(float(loss.detach()))
    return losses


def attending(network: Model, name: str = "adamw", **options: Any) -> esper.Session:
    model = copy.deepcopy(network)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    ema = Averaged(model) if options.pop("ema", False) else None
    session = esper.Session(model, optimizer, ema=ema)
    attend(session, 3)
    return session


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_training_goes_on_as_if_nothing_had_been_joined(name: str, attention: Model) -> None:
    joined, apart = attending(attention, name), attending(attention, name)
    submit(joined, PROJECT)
    losses = [attend(session, 3) for session in (joined, apart)]
    if name not in ("adafactor", "rprop"):  # factored moments mix, signs are those of rounding
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-9, atol=1e-12)
    submit(joined, PART)
    live, reference = joined.model, apart.model
    for key in ("q.weight", "k.weight", "v.bias"):
        state = joined.optimizer.state[live.get_parameter(key)]
        other = apart.optimizer.state[reference.get_parameter(key)]
        assert state.keys() == other.keys()
        for entry, value in other.items():
            if isinstance(value, torch.Tensor) and name not in ("adafactor", "rprop"):
                oracle.close(state[entry], value, f"{entry} of {key}")
    losses = [attend(session, 2) for session in (joined, apart)]
    if name not in ("adafactor", "rprop"):
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-9, atol=1e-12)


def test_averages_and_undoing_of_what_was_joined(attention: Model) -> None:
    session = attending(attention, ema=True)
    before = copy.deepcopy(capture_optimizer(session.model, session.optimizer))
    text = str(session.model)

    def fail() -> None:
        with session.boundary() as boundary:
            for record in boundary.submit(PROJECT, PART, PROJECT):
                assert record.kind == "passed", record.line()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert str(session.model) == text
    after = capture_optimizer(session.model, session.optimizer)
    assert after["groups"] == before["groups"]
    for name, values in before["state"].items():
        for key, value in values.items():
            assert torch.equal(after["state"][name][key], value)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    average: Any = session.averages[0].module
    wanted = average.eval()(x)
    submit(session, PROJECT)
    oracle.close(average(x), wanted, "average")
    attend(session, 1)
    submit(session, PART)


@pytest.mark.parametrize("how", ["another group", "never stepped", "not all stepped"])
def test_parameters_that_train_otherwise_are_not_joined(how: str, attention: Model) -> None:
    model = copy.deepcopy(attention)
    parameters = dict(model.named_parameters())
    key = parameters.pop("k.weight")
    groups: Any = [{"params": list(parameters.values())}, {"params": [key], "lr": 0.5}]
    if how != "another group":
        groups = [{"params": [*parameters.values(), key]}]
    session = esper.Session(model, torch.optim.AdamW(groups, lr=0.01))
    if how == "not all stepped":
        key.requires_grad_(False)
    if how != "never stepped":
        attend(session, 1)
    key.requires_grad_()
    text = str(model)
    with session.boundary() as boundary:
        (record,) = boundary.submit(PROJECT)
    if how == "never stepped":
        assert record.kind == "passed", record.line()
        attend(session, 1)
        return
    assert record.kind == "failure"
    assert "treats otherwise" in record.reason
    assert str(model) == text


def test_parameters_that_nobody_trains_are_joined_and_parted(attention: Model) -> None:
    model = copy.deepcopy(attention)
    own = [p for name, p in model.named_parameters() if name[0] not in "qkv"]
    session = esper.Session(model, torch.optim.AdamW(own, lr=0.01))
    submit(session, PROJECT, PART)
    attend(session, 1)
    assert not any(p is model.get_parameter("k.weight") for p in session.optimizer.state)
