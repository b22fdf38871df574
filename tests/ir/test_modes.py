"""Argument paths, mode switches and device literals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx

import esper
from esper.ir.model import Model
from esper.ir.modes import Path, get_path, set_device, set_mode, set_path
from esper.ir.verifier import verify
from tests.ir.small import convolution_inputs, convolutions, perceptron, perceptron_inputs

aten = torch.ops.aten


def node() -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph.call_function(aten.cat.default, ([x, (1, 2)], 3), {"mode": {"a": [4, 5]}})


@pytest.mark.parametrize(
    ("path", "value"), [((1,), 3), ((0, 1), (1, 2)), ((0, 1, 0), 1), (("mode", "a", 1), 5)]
)
def test_paths_read_and_write(path: Path, value: Any) -> None:
    made = node()
    assert get_path(made, path) == value
    others = [p for p in [(1,), (0, 1, 1), ("mode", "a", 0)] if p != path[: len(p)]]
    before = [get_path(made, p) for p in others if p[: len(path)] != path]
    set_path(made, path, 9)
    assert get_path(made, path) == 9
    assert [get_path(made, p) for p in others if p[: len(path)] != path] == before


def test_writing_keeps_the_kind_of_container_and_tracks_operands() -> None:
    made = node()
    x = made.args[0][0]  # type: ignore[index]
    y = made.graph.placeholder("y")
    set_path(made, (0, 0), y)
    assert isinstance(made.args, tuple)
    assert type(made.args[0]).__name__.endswith("list")
    assert made.all_input_nodes == [y]
    assert made not in x.users  # type: ignore[union-attr]
    assert made in y.users


def modes_of(model: Model) -> dict[str, list[Any]]:
    return {
        n.name: [get_path(n, path) for path in n.meta["modes"]]
        for n in model.graph.nodes
        if "modes" in n.meta
    }


def test_dropout_switches() -> None:
    model = perceptron()
    assert modes_of(model) == {"dropout": [False]}
    model.train()
    assert modes_of(model) == {"dropout": [True]}
    ids = perceptron_inputs()
    assert not torch.equal(model(*ids)["hidden"], model(*ids)["hidden"])
    model.eval()
    assert torch.equal(model(*ids)["hidden"], model(*ids)["hidden"])


def test_batch_norm_counts_in_training_only() -> None:
    model = convolutions()
    text = str(model)
    for expected in (0, 1, 2):
        counter = model.tensor("norm.num_batches_tracked")
        assert counter is not None
        assert int(counter) == expected
        model.train()
        verify(model)
        model(*convolution_inputs())
        model.eval()
        model(*convolution_inputs())
    assert str(model) == text
    verify(model)


def test_switching_says_whether_anything_changed() -> None:
    model = convolutions()
    assert not set_mode(model.graph, False)
    assert set_mode(model.graph, True)
    assert not set_mode(model.graph, True)
    assert set_mode(model.graph, False)


def test_modes_survive_a_copy_and_a_cut() -> None:
    model = copy.deepcopy(convolutions().train())
    changed, record = model.apply(esper.propose.PruneUnits(axis="axis:conv/channels", units=(1,)))
    assert record.kind == "passed", record.line()
    assert changed.training
    changed(*convolution_inputs())
    assert int(changed.tensor("norm.num_batches_tracked")) == 1  # type: ignore[arg-type]
    mean = changed.tensor("norm.running_mean")
    assert mean is not None
    assert mean.shape == (3,)
    assert mean.abs().sum() > 0
    changed.eval()
    assert torch.equal(changed(*convolution_inputs()), changed(*convolution_inputs()))


def test_device_literals_move_with_the_model() -> None:
    class Positions(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved: torch.Tensor = self.fc(x) + torch.arange(4, device=x.device)
            return moved

    model = esper.trace(Positions(), (torch.randn(3, 4),))

    def devices() -> set[Any]:
        return {
            value
            for n in model.graph.nodes
            for value in [*n.args, *n.kwargs.values()]
            if isinstance(value, torch.device)
        }

    assert devices() == {torch.device("cpu")}
    set_device(model.graph, torch.device("meta"))
    assert devices() == {torch.device("meta")}
    moved = esper.trace(Positions(), (torch.randn(3, 4),)).to("meta")
    assert moved(torch.randn(5, 4, device="meta")).shape == (5, 4)
