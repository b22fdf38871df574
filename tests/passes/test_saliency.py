"""Saliencies against brute force over everything that is cut with a unit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir.model import Model
from esper.manager import PassManager
from esper.passbase import Context
from esper.propose import PruneUnits
from esper_passes import saliency
from tests import zoo
from tests.ir.small import perceptron


@pytest.mark.parametrize("name", ["gpt2", "llama_native_norm", "resnet_bottleneck", "efficientnet"])
def test_magnitude_is_the_norm_of_all_parameters_that_go(name: str) -> None:
    """What a unit owns is found by cutting it and looking at what is missing."""
    model, _, _ = zoo.traced(name)
    axes = list(zoo.cuttable(model).values())
    scores = saliency.magnitude(model, axes)
    assert list(scores) == [axis.id for axis in axes]
    for axis in axes[:5]:
        assert scores[axis.id].shape == (axis.size,)
        unit = axis.size // 2
        expected = _energy_of_what_goes(model, axis.id, axis.unit_ids[unit]) ** 0.5
        assert float(scores[axis.id][unit]) == pytest.approx(expected, rel=1e-9)


def _energy_of_what_goes(model: Model, axis: str, unit: int) -> float:
    before = sum(float(p.detach().square().sum()) for p in model.parameters())
    manager = PassManager(model, verify="none")
    with manager.transaction() as transaction:
        record = manager.apply(PruneUnits(axis=axis, units=(unit,)))
        assert record.kind == "passed", record.line()
        after = sum(float(p.detach().square().sum()) for p in model.parameters())
        transaction.roll_back()
    return before - after


class Linear(nn.Module):
    """A linear toy: hidden units feed two consumers without any non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 9, bias=False)
        self.a = nn.Linear(9, 4, bias=False)
        self.b = nn.Linear(9, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.up(x)
        return self.a(hidden), self.b(hidden)


UP = "axis:up/neurons"


def linear() -> Model:
    torch.manual_seed(5)
    return esper.trace(Linear().double().eval(), (torch.randn(4, 5, dtype=torch.float64),))


def batches(count: int, rows: int = 1) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    generator = torch.Generator().manual_seed(2)
    return [
        ((torch.randn(rows, 5, dtype=torch.float64, generator=generator),), {})
        for _ in range(count)
    ]


def test_activation_is_energy_times_the_norm_of_what_reads_it() -> None:
    model = linear()
    data = batches(3, rows=4)
    up, a, b = (model.tensor(f"{n}.weight") for n in ("up", "a", "b"))
    assert up is not None
    assert a is not None
    assert b is not None
    energy = sum((args[0] @ up.T).square().sum(0) for args, _ in data)
    expected = (energy * (a.square().sum(0) + b.square().sum(0))).sqrt()
    (score,) = saliency.activation(model, [model.anatomy.axes[UP]], data).values()
    torch.testing.assert_close(score, expected.detach())


def test_activation_of_convolutions_sums_over_places() -> None:
    module = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 2)).double().eval()
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    model = esper.trace(module, (x,))
    hidden = torch.relu(module[0](x))
    weight = module[2].weight
    assert isinstance(weight, Tensor)
    expected = (hidden.square().sum((0, 2, 3)) * weight.square().sum((0, 2, 3))).sqrt()
    (score,) = saliency.activation(
        model, [model.anatomy.axes["axis:0/channels"]], [((x,), {})]
    ).values()
    torch.testing.assert_close(score, expected.detach())


class TwoInputs(nn.Module):
    """One layer for each of two inputs of equal shape."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.left(a) + 2 * self.right(b)))
        return out


def test_activation_binds_keywords_by_name() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    model = esper.trace(TwoInputs(), (), {"a": a, "b": b})
    axes = [axis for axis in model.anatomy.axes.values() if axis.cuttable]
    orders: list[dict[str, Tensor]] = [{"a": a, "b": b}, {"b": b, "a": a}]
    one, other = (saliency.activation(model, axes, [((), kwargs)]) for kwargs in orders)
    assert one
    for name, score in one.items():
        assert torch.equal(score, other[name])


def test_activation_changes_nothing() -> None:
    model = perceptron()
    text = str(model)
    ids = torch.arange(10).reshape(2, 5)
    saliency.activation(model, [model.anatomy.axes["axis:up/neurons"]], [((ids,), {})])
    assert str(model) == text
    assert all(p.grad is None for p in model.parameters())


def test_taylor_orders_units_by_the_change_of_the_outputs() -> None:
    """Where the network is linear the estimate is unbiased: many projections give the order."""
    model = linear()
    data = batches(3000)
    context = Context(data=data, seed=7)
    (score,) = saliency.taylor(model, [model.anatomy.axes[UP]], context, "prune").values()
    change = torch.stack([_change(model, unit, data[:400]) for unit in range(9)])
    assert torch.equal(
        score.argsort()[[0, 1, -2, -1]].sort().values,
        change.argsort()[[0, 1, -2, -1]].sort().values,
    )
    correlation = torch.corrcoef(torch.stack([score, change]))[0, 1]
    assert float(correlation) > 0.98


def _change(model: Model, unit: int, data: list[Any]) -> Tensor:
    """Root mean square change of the outputs, each scaled to unit energy, without a unit."""
    cut, _ = model.apply(PruneUnits(axis=UP, units=(unit,)))
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for args, _ in data:
            for mine, theirs in zip(cut(*args), model(*args), strict=True):
                total += (mine - theirs).square().sum() / theirs.square().sum()
    return (total / len(data)).sqrt()


def test_taylor_is_zero_for_units_that_reach_no_output() -> None:
    model = linear()
    with torch.no_grad():
        for name in ("a.weight", "b.weight"):
            model.tensor(name)[:, 4] = 0.0  # type: ignore[index]
    context = Context(data=batches(5))
    (score,) = saliency.taylor(model, [model.anatomy.axes[UP]], context, "prune").values()
    assert float(score[4]) == 0.0
    assert int((score == 0).sum()) == 1


def test_taylor_is_repeatable_and_leaves_no_gradients() -> None:
    model = linear()
    axes, context = [model.anatomy.axes[UP]], Context(data=batches(5), seed=3)
    torch.manual_seed(1)
    one = saliency.taylor(model, axes, context, "prune")[UP]
    torch.manual_seed(2)
    assert torch.equal(saliency.taylor(model, axes, context, "prune")[UP], one)
    other = Context(data=batches(5), seed=4)
    assert not torch.equal(saliency.taylor(model, axes, other, "prune")[UP], one)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_random_depends_on_its_seed_alone() -> None:
    axes = [perceptron().anatomy.axes["axis:up/neurons"]]
    torch.manual_seed(1)
    one = saliency.random(axes, 5)["axis:up/neurons"]
    torch.manual_seed(2)
    assert torch.equal(saliency.random(axes, 5)["axis:up/neurons"], one)
    assert not torch.equal(saliency.random(axes, 6)["axis:up/neurons"], one)
    assert one.shape == (8,)
