"""The quality budget and its guards."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from esper.errors import QualityError
from esper.gate.quality import MaxLoss, QualityBudget, drift, guarded, state_hash


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


DATA: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((torch.randn(5, 4, generator=torch.Generator().manual_seed(s)),), {}) for s in range(3)
]


@pytest.mark.parametrize(
    ("given", "amount", "relative"),
    [(0.01, 0.01, True), ("1%", 0.01, True), ("0.5", 0.5, False), ("0.5 absolute", 0.5, False),
     (0, 0.0, True)],
)  # fmt: skip
def test_max_loss_forms(given: float | str, amount: float, relative: bool) -> None:
    found = MaxLoss.of(given)
    assert found.amount == pytest.approx(amount)
    assert found.relative is relative


@pytest.mark.parametrize("given", ["many", "%", -0.1, float("nan"), "-3%", "inf"])
def test_meaningless_max_loss_is_refused(given: float | str) -> None:
    with pytest.raises(QualityError, match="largest loss"):
        MaxLoss.of(given)


def test_relative_loss_of_a_negative_quality_lowers_the_floor() -> None:
    assert MaxLoss(0.1, True).floor(-2.0) == pytest.approx(-2.2)
    assert MaxLoss(0.1, True).floor(2.0) == pytest.approx(1.8)
    assert MaxLoss(0.1, False).floor(2.0) == pytest.approx(1.9)


def test_metric_within_and_outside() -> None:
    scores = {"now": 0.9}
    budget = QualityBudget(lambda _: scores["now"], "1%")
    model = small()
    assert budget.set_baseline(model) == 0.9
    scores["now"] = 0.8911
    assert budget.judge(model).admissible
    scores["now"] = 0.8909
    refused = budget.judge(model)
    assert not refused.admissible
    assert "outside" in refused.reason
    assert refused.figures()["quality_after"] == 0.8909
    assert refused.loss == pytest.approx(0.0091)


@pytest.mark.parametrize("failure", [math.nan, -math.inf, "ValueError"])
def test_a_metric_that_fails_on_a_candidate_alone_refuses_it(failure: float | str) -> None:
    answers: list[float | str] = [0.9, failure, 0.9]

    def metric(_: Any) -> float:
        answer = answers.pop(0)
        if isinstance(answer, str):
            raise ValueError("input contains NaN")
        return answer

    budget, model = QualityBudget(metric), small()
    budget.set_baseline(model)
    refused = budget.judge(model)
    assert not refused.admissible
    assert math.isnan(refused.after)
    assert "outside the allowed loss of 1%: the evaluation function metric" in refused.reason
    assert budget.judge(model).admissible


def test_a_metric_that_raises_and_changes_the_model_is_an_error() -> None:
    def metric(model: Any) -> float:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        raise ValueError("late")

    with pytest.raises(QualityError, match="changed parameters or buffers"):
        guarded(metric, small())


def test_drift_is_zero_for_a_copy_and_bounds_the_energy_of_the_change() -> None:
    model = small().eval()
    budget = QualityBudget(max_loss=0.01, data=DATA)
    budget.set_baseline(model)
    same = budget.judge(copy.deepcopy(model))
    assert same.admissible
    assert same.after == 1.0
    scaled = copy.deepcopy(model)
    head = scaled[3]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.mul_(1.05)
        head.bias.mul_(1.05)
    near = budget.judge(scaled)
    assert near.details["relative_l2"] == pytest.approx(0.05, rel=1e-4)
    assert near.details["drift"] == pytest.approx(0.0025, rel=1e-4)
    assert near.details["cosine"] == pytest.approx(1.0)
    assert near.admissible
    with torch.no_grad():
        head.weight.mul_(1.15)
        head.bias.mul_(1.15)
    assert not budget.judge(scaled).admissible


def test_drift_to_nan_is_refused_and_a_nan_baseline_is_an_error() -> None:
    model, broken = small(), small()
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    budget = QualityBudget(data=DATA)
    budget.set_baseline(model)
    assert not budget.judge(broken).admissible
    with pytest.raises(QualityError, match="NaN or Inf"):
        QualityBudget(data=DATA).set_baseline(broken)


def test_drift_reports_the_worst_output() -> None:
    a = [[torch.ones(4), torch.ones(4)]]
    b = [[torch.ones(4) * 1.1, torch.zeros(4)]]
    assert drift(a, b)["drift"] == pytest.approx(1.0)
    with pytest.raises(QualityError, match="number or shape"):
        drift(a, [[torch.ones(4)]])


def test_memory_is_counted_once_for_tied_parameters() -> None:
    model = small()
    tied = nn.Linear(8, 2)
    head = model[3]
    assert isinstance(head, nn.Linear)
    tied.weight = head.weight
    tied.bias = head.bias
    budget = QualityBudget(data=DATA)
    budget.set_baseline(model)
    found = budget.judge(nn.Sequential(*list(model)[:3], tied))
    assert found.parameter_bytes_before == found.parameter_bytes_after
    both = nn.ModuleList([head, tied])
    from esper.gate.environment import parameter_bytes

    assert parameter_bytes(both) == (8 * 2 + 2) * 4


def raises(_: nn.Module) -> float:
    raise KeyError("no such dataset")


def nan(_: nn.Module) -> float:
    return math.nan


def text(_: nn.Module) -> float:
    return "good"  # type: ignore[return-value]


def trains(module: nn.Module) -> float:
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)
    return 1.0


def updates_statistics(module: nn.Module) -> float:
    module.train()
    module(DATA[0][0][0])
    return 1.0


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (raises, "evaluation function raises raised KeyError: 'no such dataset'"),
        (nan, "evaluation function nan returned nan"),
        (text, "evaluation function text returned str, not a number"),
        (trains, "evaluation function trains changed parameters or buffers"),
        (updates_statistics, "changed parameters or buffers"),
    ],
)
def test_bad_evaluation_functions_are_told_in_one_sentence(evaluate: Any, message: str) -> None:
    with pytest.raises(QualityError, match=message):
        guarded(evaluate, small())


def test_evaluation_sees_evaluation_mode_and_the_mode_is_restored() -> None:
    model = small().train()
    assert guarded(lambda m: float(not m.training), model) == 1.0
    assert model.training


def test_state_hash_sees_every_bit_and_name() -> None:
    model = small()
    before = state_hash(model)
    assert before == state_hash(copy.deepcopy(model))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert before != state_hash(model)
    assert state_hash(nn.Linear(2, 2).to(torch.bfloat16))


def test_a_budget_needs_a_metric_or_data() -> None:
    with pytest.raises(QualityError, match="--eval"):
        QualityBudget()
    with pytest.raises(QualityError, match="set_baseline"):
        QualityBudget(data=DATA).judge(small())
