"""States of sessions taken while something sleeps, or after it woke, at every granularity."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import esper
from esper.errors import BoundaryError, InputError
from esper.ir.model import Model
from esper.propose import Sedate
from tests.snapshots import assert_same, snapshot


class Attention(nn.Module):
    """Heads, and an embedding axis that runs through a layer norm and a mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.rms = nn.RMSNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three numbers for each sequence."""
        x = self.embed(x)
        h = self.norm(x)
        q, k, v = (f(h).view(*h.shape[:2], 4, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.rms(x + self.o(found.transpose(1, 2).flatten(2)))
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        out: torch.Tensor = self.head(((x - mean) / (variance + 0.1)).mean(1))
        return out


class Convolutions(nn.Module):
    """Channels through batch, group and instance norm, and a block around which one may go."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1))
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.group = nn.GroupNorm(4, 8)
        self.third = nn.Conv2d(8, 6, 1)
        self.instance = nn.InstanceNorm2d(6, affine=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three numbers for each picture."""
        x = torch.relu(self.batch(self.first(x)))
        x = torch.relu(self.group(self.second(x + self.block(x))))
        out: torch.Tensor = self.head(torch.relu(self.instance(self.third(x))).mean((2, 3)))
        return out


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Attention: (3, 5, 6),
    Convolutions: (3, 3, 6, 6),
}
PARTS = [
    (Attention, "axis:q/heads", (1,)),
    (Attention, "axis:q/head-size", (0,)),
    (Attention, "axis:embed/embedding", (1, 5)),  # layer norm, RMS norm and moments
    (Convolutions, "phage:block", ()),
    (Convolutions, "axis:first/channels", (2, 3, 4)),  # a block of units
    (Convolutions, "axis:block.0/channels", (1,)),
    (Convolutions, "axis:second/groups", (1,)),
    (Convolutions, "axis:second/embedding", (1,)),  # one channel of each group
    (Convolutions, "axis:third/channels", (0,)),
]


@cache
def _traced() -> dict[type[nn.Module], Model]:
    torch.manual_seed(0)
    return {
        kind: esper.trace(kind().double(), (torch.randn(shape, dtype=torch.float64),))
        for kind, shape in SHAPES.items()
    }


def _session(kind: type[nn.Module]) -> esper.Session:
    model = copy.deepcopy(_traced()[kind])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return esper.Session(model, optimizer, ema=AveragedModel(model), signals_every=1)


def _train(session: esper.Session, kind: type[nn.Module], steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(session.tick)
    losses = []
    for _ in range(steps):
        x = torch.randn(SHAPES[kind], generator=generator, dtype=torch.float64)
        session.optimizer.zero_grad()
        loss = session.model(x).square().mean()
        loss.backward()
        session.optimizer.step()
        session.averages[0].update_parameters(session.model)
        losses.append(float(loss.detach()))
        with session.boundary(losses[-1]):
            pass
    return losses


def _through_file(session: esper.Session, path: Path) -> Any:
    torch.save(session.state_dict(), path)
    return torch.load(path, weights_only=True)


def _facts(model: Model) -> dict[str, Any]:
    found = snapshot(model)
    del found["history"]  # who woke it
    found["tensors"] = [(name, *facts) for name, _, *facts in found["tensors"]]  # not which
    return {**found, "text": str(model), "ecology": model.ecology.data()}


@pytest.mark.parametrize(("kind", "target", "units"), PARTS)
def test_states_hold_what_sleeps_and_loading_wakes_it(
    kind: type[nn.Module], target: str, units: tuple[int, ...], tmp_path: Path
) -> None:
    session, inside, after = (_session(kind) for _ in range(3))
    _train(session, kind, 2)
    with session.boundary() as boundary:
        (record,) = boundary.submit(Sedate(target=target, units=units))
        assert record.kind == "passed", record.line()
        asleep = _through_file(session, tmp_path / "asleep.pt")
    awake = _through_file(session, tmp_path / "awake.pt")
    inside.load_state_dict(asleep)
    after.load_state_dict(awake)
    assert_same(_facts(after.model), _facts(session.model))
    with inside.boundary():  # the one that was open when the state was taken
        pass
    assert_same(_facts(inside.model), _facts(session.model))
    expected = _train(session, kind, 2)
    for other in (inside, after):
        assert _train(other, kind, 2) == expected
        assert_same(_facts(other.model), _facts(session.model))
        for mine, live in zip(other.averages, session.averages, strict=True):
            assert_same(_facts(mine.module), _facts(live.module))


@pytest.mark.parametrize("target", ["axis:second/groups", "axis:embed/embedding"])
def test_a_file_holds_a_sleeping_norm(target: str, tmp_path: Path) -> None:
    kind = Attention if "embed" in target else Convolutions
    model = copy.deepcopy(_traced()[kind])
    record = esper.PassManager(model).apply(Sedate(target=target, units=(1,)))
    assert record.kind == "passed", record.line()
    esper.save(model, tmp_path / "asleep.esper")
    again = esper.load(tmp_path / "asleep.esper")
    x = torch.randn(SHAPES[kind], dtype=torch.float64)
    assert torch.equal(again(x), model(x))
    assert str(again) == str(model)


def test_no_state_is_loaded_while_a_boundary_is_open() -> None:
    session = _session(Convolutions)
    state = copy.deepcopy(session.state_dict())
    before = _facts(session.model)
    with session.boundary() as boundary:
        boundary.submit(Sedate(target="axis:second/groups", units=(1,)))
        with pytest.raises(BoundaryError, match="a boundary is open"):
            session.load_state_dict(state)
    after = _facts(session.model)
    assert after["text"] == before["text"]


def test_a_state_whose_sleeper_cannot_wake_changes_nothing() -> None:
    session, other = _session(Convolutions), _session(Convolutions)
    with session.boundary() as boundary:
        boundary.submit(Sedate(target="axis:second/groups", units=(1,)))
        state = copy.deepcopy(session.state_dict())
    damaged = {**state, "model": {**state["model"]}}
    damaged["model"]["graph"] = state["model"]["graph"].replace("kept.group_norm", "kept.nothing")
    before = _facts(other.model)
    with pytest.raises(InputError, match="no op"):
        other.load_state_dict(damaged)
    assert_same(_facts(other.model), before)
