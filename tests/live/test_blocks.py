"""Models compiled block by block: equal blocks once, and only what a change touched again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.live.blocks import blocks
from esper.propose import DropRegion, PruneUnits

# PyTorch's compiler looks at the gradient of what it is given, and is warned by PyTorch.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class Stack(nn.Module):
    """Three equal residual blocks, with dropout so that modes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 6))
            for _ in range(3)
        )
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        result: torch.Tensor = self.head(x)
        return result


@pytest.fixture
def model() -> Model:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return esper.trace(Stack().double(), (torch.randn(3, 4, dtype=torch.float64),))


def _session(model: Model) -> esper.Session:
    session = esper.Session(model, torch.optim.SGD(model.parameters(), lr=0.1))
    session.compile(per_block=True, backend="aot_eager")
    return session


def _agrees(model: Model, plain: Model) -> None:
    inputs = torch.randn(5, 4, dtype=torch.float64)
    results = [m(inputs) for m in (model, plain)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    for result in results:
        result.square().sum().backward()
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert own.grad is not None, name
        assert other.grad is not None
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-11, atol=1e-11)
    model.zero_grad()
    plain.zero_grad()


def test_blocks_are_the_outermost_regions_of_the_stack(model: Model) -> None:
    assert [block.id for block in blocks(model)] == [f"phage:layers.{i}" for i in range(3)]


def test_equal_blocks_are_compiled_once_and_only_changes_again(model: Model) -> None:
    session = _session(model)

    def compiled() -> int:
        before = len(session.compilations)
        _agrees(model, copy.deepcopy(model))
        _agrees(model, copy.deepcopy(model))
        made = session.compilations[before:]
        assert all(c.seconds > 0 for c in made)
        return sum(c.trigger == "dynamo" for c in made)

    assert compiled() == 1
    with session.boundary() as boundary:
        cut = PruneUnits(axis="axis:layers.1.0/neurons", units=(2,))
        assert boundary.submit(cut)[0].kind == "passed"
    assert compiled() == 1  # the block of another size; the other two are known
    with session.boundary() as boundary:
        assert boundary.submit(DropRegion(region="phage:layers.0"))[0].kind == "passed"
    assert compiled() == 0
    session.close()


def test_many_changes_never_reach_a_limit(model: Model) -> None:
    session = _session(model)
    for unit in range(7):
        for layer in range(3):
            with session.boundary() as boundary:
                cut = PruneUnits(axis=f"axis:layers.{layer}.0/neurons", units=(unit,))
                assert boundary.submit(cut)[0].kind == "passed"
        _agrees(model, copy.deepcopy(model))
    session.close()


def test_modes_hooks_and_copies_are_as_ever(model: Model) -> None:
    session = _session(model)
    seen: list[int] = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    _agrees(model, copy.deepcopy(model))
    before = len(session.compilations)
    model.eval()
    _agrees(model, copy.deepcopy(model))
    model.train()
    made = len(session.compilations)
    assert made > before  # code of evaluation
    _agrees(model, copy.deepcopy(model))
    assert len(session.compilations) == made  # code of training is known again
    assert len(seen) >= 3
    handle.remove()
    session.close()


def test_a_model_without_regions_runs_as_it_is() -> None:
    torch.manual_seed(0)
    model = esper.trace(nn.Linear(4, 2).double(), (torch.randn(3, 4, dtype=torch.float64),))
    session = _session(model)
    _agrees(model, copy.deepcopy(model))
    assert not session.compilations
    session.close()
