"""What initialisations of new units promise beside the function: gradients and scales."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.errors import UsageError
from esper.ir.model import Model
from esper.propose import WidenUnits, parse
from esper_passes.filling import Filling, filled
from esper_passes.filling import Layout as Places
from esper_passes.gradmax import gradmax
from esper_passes.growth_init import drawn
from esper_passes.refit import digest as payload_digest


class Wide(nn.Module):
    """Enough inputs that directions differ, and an activation to choose."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(24, 32)
        self.activation = activation
        self.second = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two layers."""
        out: torch.Tensor = self.second(self.activation(self.first(x)))
        return out


AXIS = "axis:first/neurons"


def _model(activation: nn.Module) -> Model:
    torch.manual_seed(0)
    return esper.trace(Wide(activation).double(), (torch.randn(4, 24, dtype=torch.float64),))


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 16, generator=generator, dtype=torch.float64)
    inputs = [torch.randn(64, 24, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [(x, (x @ mixing).tanh()) for x in inputs]


def _loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def _strength(model: Model, proposal: WidenUnits) -> float:
    """Gradient norm of the new outgoing weights over all batches."""
    wide = copy.deepcopy(model)
    wide.payloads.update(model.payloads)
    record = esper.PassManager(wide).apply(proposal)
    assert record.kind == "passed", record.line()
    x = _batches()[0][0]
    torch.testing.assert_close(wide(x), model(x), rtol=0, atol=1e-12)
    sum((_loss(wide, batch) for batch in _batches()), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    gradient = wide.get_parameter("second.weight").grad
    assert gradient is not None
    return float(gradient[:, 32:].norm())


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU()])
def test_gradmax_wakes_new_units_up(activation: nn.Module) -> None:
    model = _model(activation)
    before = str(model)
    solved = gradmax(model, AXIS, 3, _batches(), _loss)
    assert str(model) == before
    assert parse(solved.model_dump_json()) == solved
    best = _strength(model, solved)
    rows = model.payloads[solved.digest]["first.weight"].norm(dim=1)
    usual = model.get_parameter("first.weight").detach().square().sum(1).mean().sqrt()
    torch.testing.assert_close(rows, usual.expand(3))  # no strength is bought with size
    others = [_strength(model, WidenUnits(axis=AXIS, count=3, seed=seed)) for seed in range(5)]
    assert best > max(others)


def test_gradmax_says_what_it_cannot_do() -> None:
    model = _model(nn.ReLU())
    with pytest.raises(UsageError, match="25 units have no more than 24 directions"):
        gradmax(model, AXIS, 25, _batches(), _loss)
    with pytest.raises(UsageError, match="needs a batch"):
        gradmax(model, AXIS, 1, [], _loss)
    solved = gradmax(model, AXIS, 2, _batches()[:1], _loss)
    manager = esper.PassManager(model)
    assert manager.apply(solved.model_copy(update={"count": 3})).code == "stale-payload"
    model.payloads[solved.digest]["first.weight"].add_(1)
    assert manager.apply(solved).code == "changed-payload"
    model.payloads.clear()
    assert manager.apply(solved).code == "missing-payload"
    gated = esper.trace(
        nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2)), (torch.randn(2, 4),)
    )
    (axis,) = [a.id for a in gated.anatomy.axes.values() if a.cuttable]
    assert gradmax(gated, axis, 1, [None], lambda m, _: m(torch.randn(2, 4)).sum()).count == 1
    pooled = nn.Sequential(nn.Conv2d(1, 3, 1), nn.MaxPool2d(2), nn.Conv2d(3, 2, 1))
    grouped = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2))
    for module, sentence in ((pooled, "reads units at"), (grouped, "group")):
        conv = esper.trace(module, (torch.randn(2, 1, 4, 4),))
        name = next(a.id for a in conv.anatomy.axes.values() if a.cuttable)
        with pytest.raises(UsageError, match=sentence):
            gradmax(conv, name, 1, [None], lambda m, _: m(torch.randn(2, 1, 4, 4)).sum())


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "2d": (
        nn.Sequential(
            nn.Conv2d(2, 5, 3, stride=2, padding=1),
            nn.Identity(),
            nn.Conv2d(5, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
        ),
        (3, 2, 12, 12),
    ),
    "same": (
        nn.Sequential(
            nn.Conv2d(2, 5, 2, padding="same"), nn.ReLU(), nn.Conv2d(5, 3, 4, padding="same")
        ),
        (3, 2, 7, 7),
    ),
    "1d": (
        nn.Sequential(nn.Conv1d(3, 4, 5), nn.Identity(), nn.Conv1d(4, 2, 3, padding=1)),
        (3, 3, 20),
    ),
}


def _grown(model: Model, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of the new outgoing weights, for units that come in with these rows."""
    payload = {"0.weight": rows}
    wide, named = copy.deepcopy(model), payload_digest(payload)
    wide.payloads[named] = payload
    wish = WidenUnits(axis="axis:0/channels", count=len(rows), init="gradmax", digest=named)
    assert esper.PassManager(wide).apply(wish).kind == "passed"
    torch.testing.assert_close(wide(x), model(x), rtol=0, atol=1e-13)
    wide(x).pow(3).sum().backward()
    gradient = wide.get_parameter("2.weight").grad
    assert gradient is not None
    return gradient[:, -len(rows) :]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradmax_of_convolutions_is_the_maximum(name: str) -> None:
    torch.manual_seed(0)
    module, shape = CONVOLUTIONS[name]
    x = torch.randn(shape, dtype=torch.float64)
    model = esper.trace(copy.deepcopy(module).double(), (x,))
    solved = gradmax(
        model, "axis:0/channels", 2, [x[:1], x[1:]], lambda call, part: call(part).pow(3).sum()
    )
    rows = model.payloads[solved.digest]["0.weight"]
    best = float(_grown(model, rows, x).norm())
    norms = rows.flatten(1).norm(dim=1)
    if isinstance(module[1], nn.Identity):  # type: ignore[index]
        # The gradient is linear in what comes in: units that take one input each give its matrix.
        inputs = rows[0].numel()
        each = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *rows.shape[1:])
        matrix = _grown(model, each, x).movedim(1, -1).flatten(0, -2)
        largest = torch.linalg.svdvals(matrix)[:2]
        assert best == pytest.approx(float((largest * norms).norm()), rel=1e-10)
    for _ in range(6):
        other = torch.randn_like(rows)
        scale = (norms / other.flatten(1).norm(dim=1)).reshape(-1, *[1] * (rows.ndim - 1))
        assert float(_grown(model, other * scale, x).norm()) < best


def test_rms_is_preserved_and_drawn_units_alone_do_not() -> None:
    x = torch.randn(512, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ratios: dict[str, float] = {}
    for init in ("rms", "random"):
        model = _model(nn.Tanh())
        with torch.no_grad():
            model.get_parameter("second.bias").zero_()
            model.get_parameter("second.weight").mul_(3)
        before = model(x).detach().square().mean().sqrt()
        found = []
        for seed in range(8):
            wide, record = model.apply(WidenUnits(axis=AXIS, count=32, init=init, seed=seed))
            assert record.figures["tolerance"] == "lossy"
            found.append(wide(x).detach().square().mean().sqrt() / before)
        ratios[init] = float(torch.stack(found).mean())
    assert abs(ratios["rms"] - 1) < 0.05
    assert ratios["random"] > 1.25  # twice the units, sqrt(2) times the scale


def test_statistics_of_new_channels_are_copies() -> None:
    """A drawn variance could be negative."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(2, 5, 1), nn.BatchNorm1d(5), nn.Conv1d(5, 2, 1)).eval()
    module[1].running_var.copy_(torch.tensor([1e-3, 2.0, 3.0, 4.0, 50.0]))  # type: ignore[operator]
    model = esper.trace(module, (torch.randn(3, 2, 4),)).eval()
    wide, record = model.apply(WidenUnits(axis="axis:0/channels", count=4, seed=1))
    assert record.kind == "passed", record.line()
    variances = dict(wide.named_buffers())["1.running_var"]
    assert set(variances.tolist()) == set(variances[:5].tolist())


def test_constant_vectors_go_on_being_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.full((6,), 0.7)
    assert torch.equal(drawn(scale, scale[:2], 0, generator), scale[:2])
    every = torch.tensor([4, 5]).numpy()
    places = Places(torch.arange(4).numpy(), every, every - 4, every - 4)
    (grow,) = filled(torch.arange(4.0), 0, places, Filling("mean"), generator)
    assert grow(torch.arange(4.0)).tolist() == [0.0, 1.0, 2.0, 3.0, 1.5, 1.5]
