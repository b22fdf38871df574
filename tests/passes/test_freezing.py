"""Lowering may freeze a weight, raising lets it train again, and everything goes back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import esper
from esper.gate.gate import Gate
from esper.ir import artifact
from esper.ir.model import Model
from esper.passbase import Context
from esper.propose import LowerGatedMlp, LowerLinear, RaiseKernel
from esper_passes.contest import Ground
from esper_passes.duel import Ratio
from esper_passes.kernel_choice import Freeze
from esper_passes.lower_kernels import LowerKernels
from tests.passes.sparse_models import FORMS, forms
from tests.passes.support import drive, same_state
from tests.passes.test_lower_kernels import mlp

NODE, WEIGHT = "linear", "first.weight"
LOWER = LowerLinear(node=NODE, rows=8, run=4, freeze=True)
RAISE = RaiseKernel(node=NODE)
WIN = Ratio(2.0, 1.9, 2.1, 31)


@pytest.fixture
def model() -> Model:
    return copy.deepcopy(forms()[0])


def training(model: Model) -> set[str]:
    return {name for name, tensor in model.named_parameters() if tensor.requires_grad}


def gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    return parameter.grad


@pytest.mark.parametrize("node", FORMS)
def test_only_its_weight_is_frozen_until_it_is_raised(node: str, model: Model) -> None:
    weight, rows, run = FORMS[node]
    every = training(model)
    lowered, record = model.apply(LowerLinear(node=node, rows=rows, run=run, freeze=True))
    assert record.kind == "passed", record.line()
    assert "on frozen weights" in record.reason
    assert every - training(lowered) == {weight}
    back, record = lowered.apply(RaiseKernel(node=node))
    assert record.kind == "passed", record.line()
    assert training(back) == every
    same_state(back, model)
    assert str(back) == str(model)


def test_what_was_frozen_before_stays_frozen(model: Model) -> None:
    model.get_parameter(WEIGHT).requires_grad_(False)
    lowered, record = model.apply(LOWER)
    assert "frozen" not in record.reason
    assert WEIGHT not in training(lowered.apply(RAISE)[0])


def test_both_weights_of_a_gated_mlp() -> None:
    model, _ = mlp()
    lowered, _ = model.apply(LowerGatedMlp(node="mul", rows=8, run=4, freeze=True))
    assert training(model) - training(lowered) == {"gate.weight", "up.weight"}
    assert training(lowered.apply(RaiseKernel(node="mul"))[0]) == training(model)


def test_a_rollback_thaws_and_gives_the_gradient_back(model: Model) -> None:
    manager = esper.PassManager(model)
    weight = model.get_parameter(WEIGHT)
    weight.grad = torch.ones_like(weight)
    with manager.transaction() as transaction:
        assert manager.apply(LOWER).kind == "passed"
        assert WEIGHT not in training(model)
        assert gradient(weight) is None
        transaction.roll_back()
    assert WEIGHT in training(model)
    left = gradient(weight)
    assert left is not None
    assert torch.equal(left, torch.ones_like(weight))


def test_a_file_remembers(model: Model, tmp_path: Path) -> None:
    lowered, _ = model.apply(LOWER)
    artifact.save(lowered, tmp_path / "m.esper")
    loaded = artifact.load(tmp_path / "m.esper")
    assert training(loaded) == training(lowered)
    assert training(loaded.apply(RAISE)[0]) == training(model)


def test_an_optimizer_leaves_it_alone_and_keeps_its_moments(model: Model) -> None:
    x = forms()[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # zeros stay, until they are packed
    session = esper.Session(model, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    def submit(proposal: LowerLinear | RaiseKernel) -> None:
        with session.boundary() as boundary:
            (record,) = boundary.submit(proposal)
        assert record.kind == "passed", record.line()
        session.check()

    weight = model.get_parameter(WEIGHT)
    step()
    moments = optimizer.state[weight]["exp_avg"].clone()
    optimizer.param_groups[0]["lr"] = 0.1
    submit(LOWER)
    before = weight.detach().clone()
    step()
    assert torch.equal(weight, before)
    submit(RAISE)
    kept = weight != 0
    assert torch.equal(optimizer.state[weight]["exp_avg"][kept], moments[kept])
    before = weight.detach().clone()
    step()
    assert not torch.equal(weight, before)


# -- the pass --------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bool]:
    """Kernels win; holds whether each was measured on frozen weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[bool] = []

    def fight(contest: object, ground: Ground, bar: float) -> Ratio:
        seen.append(ground.frozen)
        return WIN

    monkeypatch.setattr("esper_passes.kernel_choice.fight", fight)
    return seen


@pytest.mark.parametrize(
    ("gate", "freeze", "frozen"),
    [
        (Gate(objective="inference"), "auto", True),
        (Gate(objective="training"), "auto", False),
        (None, "auto", False),
        (None, "yes", True),
        (Gate(objective="inference"), "no", False),
    ],
)
def test_the_pass_freezes_for_inference(
    gate: Gate | None, freeze: Freeze, frozen: bool, measured: list[bool]
) -> None:
    model, given = mlp()
    context = Context(inputs=given.inputs, gate=gate)
    lowered, records, _ = drive(LowerKernels(freeze=freeze), model, context)
    assert [r.kind for r in records] == ["passed"] * 3
    gone = {"gate.weight", "up.weight", "down.weight"} if frozen else set()
    assert training(model) - training(lowered) == gone
    assert set(measured) == {frozen}


def test_frozen_weights_are_measured_frozen(measured: list[bool]) -> None:
    model, context = mlp()
    model.requires_grad_(False)
    drive(LowerKernels(), model, context)
    assert set(measured) == {True}
