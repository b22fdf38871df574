"""Indices with structure become slices, shuffles and repeats, and units behind them can be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir.model import Model
from tests import oracle, zoo

Taken = Callable[[nn.Module, Tensor], Tensor]


class Indexed(nn.Module):
    """Two linear layers with an index on the six units between."""

    def __init__(self, taken: Taken, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(width, 3)
        self.saved: Tensor
        self.unsaved: Tensor
        self.register_buffer("saved", torch.tensor([0, 1, 4, 5]))
        self.register_buffer("unsaved", torch.tensor([0, 1, 4, 5]), persistent=False)
        self.taken = taken

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.taken(self, self.enter(x)))
        return out


def traced(taken: Taken, width: int) -> tuple[Model, nn.Module, Tensor]:
    torch.manual_seed(0)
    module, x = Indexed(taken, width).eval(), torch.randn(3, 5, 4)
    return esper.trace(module, (x,)), module, x


def called(model: Model) -> list[str]:
    return [
        node.target._schema.name.split("::")[1]
        for node in model.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]


STRUCTURED: dict[str, tuple[Sequence[int], list[str]]] = {
    "all": (range(6), []),
    "middle": (range(1, 4), ["slice"]),
    "two runs": ([4, 5, 0, 1], ["slice", "slice", "cat"]),
    "from behind": ([-2, -1], ["slice"]),
    "every other": ([1, 3, 5], ["slice"]),
    "reversed": (range(5, -1, -1), ["flip"]),
    "shuffled": ([0, 3, 1, 4, 2, 5], ["unflatten", "transpose", "flatten"]),
    "repeated": ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], ["repeat_interleave"]),
    "tiled": ([*range(6), *range(6)], ["cat"]),
}


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("op", ["index", "index_select", "gather"])
def test_an_index_with_structure_is_spelled_out(name: str, op: str) -> None:
    values, expected = STRUCTURED[name]
    if op != "index":
        values = [value % 6 for value in values]

    def taken(_: nn.Module, y: Tensor) -> Tensor:
        index = torch.tensor(list(values))
        if op == "index":
            return y[..., index]
        if op == "index_select":
            return y.index_select(-1, index)
        return y.gather(-1, index.expand(*y.shape[:-1], -1))

    model, module, x = traced(taken, len(values))
    assert [each for each in called(model) if each not in ("linear", "sym_size")] == expected
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)
    wide = oracle.as_float64(model)
    removed = {n: zoo.some_units(axis) for n, axis in zoo.cuttable(wide).items()}
    if name not in ("reversed", "from behind"):  # the order of these is fixed, or nothing is left
        assert removed
        oracle.assert_exact_cut(wide, removed, (x.double(),), {})


@pytest.mark.parametrize("name", ["two runs", "shuffled"])
@pytest.mark.parametrize("shape", [(1, -1), (-1, 1), (1, -1, 1)], ids=str)
def test_dims_of_size_one_that_an_index_has_are_kept(name: str, shape: tuple[int, ...]) -> None:
    values, expected = STRUCTURED[name]

    def taken(_: nn.Module, y: Tensor) -> Tensor:
        return y[..., torch.tensor(list(values)).reshape(shape)].flatten(-len(shape))

    model, module, x = traced(taken, len(values))
    assert set(expected) <= set(called(model))
    assert "unsqueeze" in called(model)
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)
    assert model.anatomy.axes["axis:enter/neurons"].cuttable


def test_a_buffer_that_is_not_saved_is_a_constant() -> None:
    model, module, x = traced(lambda m, y: y.index_select(-1, m.get_buffer("unsaved")), 4)
    assert "index_select" not in called(model)
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("taken", "width"),
    [
        pytest.param(lambda m, y: y[..., m.get_buffer("saved")], 4, id="may be loaded"),
        pytest.param(lambda m, y: y[..., torch.tensor([3, 1, 5, 0, 2, 4])], 6, id="no structure"),
        pytest.param(lambda m, y: y[..., (y[0, 0] > 0).long()], 6, id="depends on data"),
    ],
)
def test_other_indices_stay_and_freeze_what_they_address(taken: Taken, width: int) -> None:
    model, module, x = traced(taken, width)
    assert "index" in called(model)
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)
    reason = model.anatomy.axes["axis:enter/neurons"].frozen_reason
    assert reason is not None
    assert "addressed by data" in reason
