"""Units that output a known constant: folding is exact; where it would not be, nothing folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

import esper
from esper.ir.model import Model
from esper.propose import PruneUnits
from tests.passes.support import apply, drift

UNITS = (2, 5)


class Two(nn.Module):
    """A layer whose units 2 and 5 output their biases, a chain of ops, and a consumer."""

    def __init__(
        self, first: nn.Module, chain: Callable[[Tensor], Tensor], second: nn.Module
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.chain(self.first(x)))
        return out


def traced(module: nn.Module, x: Tensor, *, silent: bool = True) -> Model:
    module = module.double().eval()
    if silent:
        with torch.no_grad():
            weight = module.get_submodule("first").weight
            assert isinstance(weight, Tensor)
            weight[list(UNITS)] = 0.0
    return esper.trace(module, (x,))


def rows() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64)


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64)


def fold(model: Model) -> tuple[Model, list[int]]:
    axis = next(name for name in model.anatomy.axes if name.startswith("axis:first/"))
    if not model.anatomy.axes[axis].cuttable:
        axis = next(a.id for a in model.anatomy.axes.values() if a.cuttable)
    changed, record = apply(model, PruneUnits(axis=axis, units=UNITS, fold_constants=True))
    assert record.kind == "passed", record.line()
    return changed, list(record.figures.get("folded_units", []))


FOLDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: Two(nn.Linear(4, 8), lambda h: h, nn.Linear(8, 3)), rows),
    "relu": (lambda: Two(nn.Linear(4, 8), lambda h: F.relu(h + 1), nn.Linear(8, 3)), rows),
    "chain": (
        lambda: Two(
            nn.Linear(4, 8),
            lambda h: F.dropout(F.gelu(torch.tanh(h) * 2 - 0.5), 0.3, False),
            nn.Linear(8, 3),
        ),
        rows,
    ),
    "consumer without bias": (
        lambda: Two(nn.Linear(4, 8), torch.sigmoid, nn.Linear(8, 3, bias=False)),
        rows,
    ),
    "producer without bias": (
        lambda: Two(nn.Linear(4, 8, bias=False), torch.sigmoid, nn.Linear(8, 3)),
        rows,
    ),
    "convolutions": (
        lambda: Two(nn.Conv2d(3, 8, 3, padding=1), F.silu, nn.Conv2d(8, 2, 3, stride=2)),
        image,
    ),
    "convolutions without bias": (
        lambda: Two(nn.Conv2d(3, 8, 1), F.silu, nn.Conv2d(8, 2, 2, bias=False)),
        image,
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folding_keeps_the_function(name: str) -> None:
    build, x = FOLDS[name]
    model = traced(build(), x())
    changed, folded = fold(model)
    assert folded == list(UNITS)
    assert drift(model, changed, (x(),)) < 1e-12
    # Cutting the same units without folding would not keep it.
    plain, _ = apply(
        model,
        PruneUnits(axis=next(a.id for a in model.anatomy.axes.values() if a.cuttable), units=UNITS),
    )
    assert drift(model, plain, (x(),)) > 1e-3


def test_a_new_bias_is_trainable_and_named_as_a_layer_would() -> None:
    build, x = FOLDS["consumer without bias"]
    changed, _ = fold(traced(build(), x()))
    bias = dict(changed.named_parameters())["second.bias"]
    assert bias.requires_grad
    changed(x()).sum().backward()
    assert bias.grad is not None


def test_only_constant_units_are_folded() -> None:
    build, x = FOLDS["linear"]
    model = traced(build(), x())
    axis = next(a.id for a in model.anatomy.axes.values() if a.cuttable)
    changed, record = apply(model, PruneUnits(axis=axis, units=(1, 2), fold_constants=True))
    assert record.figures["folded_units"] == [2]
    only_one, _ = apply(model, PruneUnits(axis=axis, units=(2,), fold_constants=True))
    masked, _ = apply(only_one, PruneUnits(axis=axis, units=(1,)))
    assert drift(changed, masked, (x(),)) < 1e-12


def test_every_consumer_receives_its_constant() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 8)
            self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out: Tensor = self.a(torch.tanh(h)) + self.b(torch.cos(h))
            return out

    model = traced(Three(), rows())
    changed, folded = fold(model)
    assert folded == list(UNITS)
    assert drift(model, changed, (rows(),)) < 1e-12


def test_a_layer_called_twice_with_the_same_constants() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x)) + self.second(self.first(-x)).sin()
            return out

    model = traced(Twice(), rows())
    changed, folded = fold(model)
    assert folded == list(UNITS)
    assert drift(model, changed, (rows(),)) < 1e-12


class Residual(nn.Module):
    """The hidden units also receive a second addend."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(4, 8), nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x) + self.other(x))
        return out


class TwoReaders(nn.Module):
    """One consumer could take the constant, the other pads with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.a, self.b = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.a(h) + self.b(h)
        return out


class CalledTwice(nn.Module):
    """One consumer reads two layers whose constants differ: its bias cannot hold both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twin = nn.Linear(4, 8), nn.Linear(4, 8)
        self.second = nn.Linear(8, 3)
        with torch.no_grad():
            self.twin.weight[list(UNITS)] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x))) * self.second(self.twin(x)).sin()
        return out


class SharedBias(nn.Module):
    """The consumer's bias is read by another layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(4, 3)
        self.other.bias = self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x))) + self.other(x)
        return out


class ComputedWeight(nn.Module):
    """The consumer's weight is computed in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.first(x)), self.weight * 2)


class UnusedBias(nn.Module):
    """The consumer leaves its own bias out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.first(x)), self.second.weight)


REFUSES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "zero padding": (
        lambda: Two(nn.Conv2d(3, 8, 1), F.relu, nn.Conv2d(8, 2, 3, padding=1)),
        image,
    ),
    "padding by name": (
        lambda: Two(nn.Conv2d(3, 8, 1), F.relu, nn.Conv2d(8, 2, 3, padding="same")),
        image,
    ),
    "padding as an op": (
        lambda: Two(nn.Conv2d(3, 8, 1), lambda h: F.pad(h, (1, 1, 1, 1)), nn.Conv2d(8, 2, 3)),
        image,
    ),
    "depthwise between": (
        lambda: Two(
            nn.Conv2d(3, 8, 1),
            F.relu,
            nn.Sequential(nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 2, 1)),
        ),
        image,
    ),
    "transposed consumer": (
        lambda: Two(nn.Conv2d(3, 8, 1), F.relu, nn.ConvTranspose2d(8, 2, 2)),
        image,
    ),
    "a product between": (
        lambda: Two(nn.Linear(4, 8), lambda h: h * h.sum(0, keepdim=True), nn.Linear(8, 3)),
        rows,
    ),
    "pooling between": (
        lambda: Two(
            nn.Conv2d(3, 8, 1), lambda h: F.avg_pool2d(h, 2, padding=1), nn.Conv2d(8, 2, 1)
        ),
        image,
    ),
    "a second addend": (Residual, rows),
    "two readers": (TwoReaders, image),
    "a layer called twice": (CalledTwice, rows),
    "a bias that is shared": (SharedBias, rows),
    "a weight that is computed": (ComputedWeight, rows),
    "a bias that is not read": (UnusedBias, rows),
}


@pytest.mark.parametrize("name", REFUSES)
def test_nothing_is_folded_where_it_would_not_be_exact(name: str) -> None:
    build, x = REFUSES[name]
    model = traced(build(), x())
    axis = next(
        a.id for a in model.anatomy.axes.values() if a.cuttable and ("first.weight", 0) in a.members
    )
    before = list(model.state_dict())
    changed, record = apply(model, PruneUnits(axis=axis, units=UNITS, fold_constants=True))
    assert record.kind == "passed", record.line()
    assert "folded_units" not in record.figures
    assert list(changed.state_dict()) == before
    plain, _ = apply(model, PruneUnits(axis=axis, units=UNITS))
    assert drift(changed, plain, (x(),)) == 0.0


def test_units_with_weights_are_not_constant() -> None:
    build, x = FOLDS["linear"]
    _, folded = fold(traced(build(), x(), silent=False))
    assert folded == []


def test_dropout_in_training_is_not_a_constant() -> None:
    module = Two(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    with torch.no_grad():
        module.first.weight[list(UNITS)] = 0.0  # type: ignore[operator]
    model: Any = esper.trace(module.train(), (rows(),))
    _, folded = fold(model)
    assert folded == []
