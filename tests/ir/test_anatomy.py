"""Anatomy: IDs that a person would expect, that survive cuts and copies and are never reused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.manager import PassManager
from esper.propose import EliminateDead, PruneUnits
from tests import zoo
from tests.ir.small import convolutions, perceptron

NEURONS = "axis:up/neurons"

# ID without `axis:` -> units, of every axis that may be cut.
EXPECTED: dict[str, dict[str, int]] = {
    "bert": {
        "model.bert/embedding": 24,
        **{
            f"model.bert.encoder.layer.{i}.{axis}": size
            for i in range(2)
            for axis, size in {
                "attention/heads": 4,
                "attention.self/head-size": 6,
                "attention/head-size": 6,
                "intermediate.dense/neurons": 40,
            }.items()
        },
        "model.bert.pooler.dense/neurons": 24,
    },
    "llama_native_norm": {
        "model/embedding": 36,
        "model.model/head-size": 3,  # shared by all layers through the rotary table
        **{
            f"model.model.layers.{i}.{axis}": size
            for i in range(2)
            for axis, size in {
                "self_attn/kv-groups": 2,
                "self_attn/query-heads": 3,
                "self_attn/head-size": 6,
                "mlp/neurons": 44,
            }.items()
        },
    },
    "resnet_basic": {
        "conv1/channels": 8,
        "layers.0/channels": 8,
        "layers.1/channels": 8,
        "layers.2/channels": 12,
        "layers/channels": 12,
        "layers.3/channels": 12,
        "layers.4/channels": 20,
        "layers.4.conv2/channels": 20,
        "layers.5/channels": 20,
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_ids(name: str) -> None:
    model, _, _ = zoo.traced(name)
    found = {key.removeprefix("axis:"): axis.size for key, axis in zoo.cuttable(model).items()}
    assert found == EXPECTED[name]
    for key, axis in model.anatomy.axes.items():
        assert key == axis.id
        assert axis.id.rpartition("/")[2].partition(".")[0] == axis.kind
        assert axis.unit_ids == tuple(range(axis.size))


def test_what_an_axis_says_of_itself() -> None:
    model = perceptron()
    axes = model.anatomy.axes
    neurons = axes[NEURONS]
    assert neurons.members == (("up.weight", 0), ("up.bias", 0), ("down.weight", 1))
    assert neurons.cuttable
    assert neurons.lossy_reason is None
    vocabulary = axes["axis:embed/vocabulary"]
    assert not vocabulary.cuttable
    assert vocabulary.frozen_reason == "rows are addressed by data (embedding)"
    assert vocabulary.frozen_node == "embedding"
    assert ("head.weight", 0) not in vocabulary.members  # a tied tensor has one name


def test_find_takes_globs_in_graph_order() -> None:
    model, _, _ = zoo.traced("bert")
    heads = model.find("*.attention/heads")
    assert heads == [f"axis:model.bert.encoder.layer.{i}.attention/heads" for i in range(2)]
    assert model.find("axis:nowhere*") == []
    assert set(model.find("phage:*")) == set(model.anatomy.phages)
    assert set(model.find("slot:*")) == set(model.anatomy.slots)


def test_ids_are_the_same_in_every_trace() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(2, 3)
    one, two = esper.trace(module, (x,)), esper.trace(module.eval(), (x,))
    assert one.anatomy.axes == two.anatomy.axes


def cut(model: Model, axis: str, *units: int) -> None:
    record = PassManager(model).apply(PruneUnits(axis=axis, units=units))
    assert record.kind == "passed", record.line()


def test_units_keep_their_birth_numbers() -> None:
    model = perceptron()
    ids = list(model.anatomy.axes)
    row = model.tensor("up.weight")[7].clone()  # type: ignore[index]
    cut(model, NEURONS, 3, 5)
    assert list(model.anatomy.axes) == ids
    assert model.anatomy.axes[NEURONS].unit_ids == (0, 1, 2, 4, 6, 7)
    assert model.anatomy.axes[NEURONS].positions((7,)) == [5]
    assert torch.equal(model.tensor("up.weight")[5], row)  # type: ignore[index]
    cut(model, NEURONS, 7, 0)
    assert model.anatomy.axes[NEURONS].unit_ids == (1, 2, 4, 6)
    with pytest.raises(KeyError):
        model.anatomy.axes[NEURONS].positions((7,))


def test_ids_and_units_survive_a_new_analysis_and_a_copy() -> None:
    model, _, _ = zoo.traced("llama_native_norm")
    for axis in list(zoo.cuttable(model).values()):
        cut(model, axis.id, *zoo.some_units(axis))
    before = {name: axis.unit_ids for name, axis in model.anatomy.axes.items()}
    copied = copy.deepcopy(model)
    model.invalidate()
    for each in (model, copied):
        assert {name: axis.unit_ids for name, axis in each.anatomy.axes.items()} == before
    cut(copied, NEURONS_OF_LLAMA, copied.anatomy.axes[NEURONS_OF_LLAMA].unit_ids[0])
    assert {name: axis.unit_ids for name, axis in model.anatomy.axes.items()} == before


@pytest.mark.parametrize("down_to_one", ["kv-groups", "query-heads", "head-size"])
def test_axes_of_one_unit_keep_their_ids_and_move_nobody(down_to_one: str) -> None:
    model, args, kwargs = zoo.traced("llama_native_norm")
    for axis in list(zoo.cuttable(model).values()):
        if axis.kind == down_to_one:
            cut(model, axis.id, *axis.unit_ids[1:])
    # The second time the leaves that moved up are cut to one as well.
    for kind in (None, "query-heads", "head-size"):
        for axis in list(zoo.cuttable(model).values()):
            if axis.kind == kind:
                cut(model, axis.id, *axis.unit_ids[:-1])
        before = {name: axis.unit_ids for name, axis in model.anatomy.axes.items()}
        model.invalidate()
        for each in (model, copy.deepcopy(model)):
            assert {name: axis.unit_ids for name, axis in each.anatomy.axes.items()} == before
            verify(each)
    model(*args, **kwargs)
    cut(model, NEURONS_OF_LLAMA, 3)


NEURONS_OF_LLAMA = "axis:model.model.layers.0.mlp/neurons"


def test_resizing_leaves_other_axes_alone() -> None:
    model = convolutions()
    before = dict(model.anatomy.axes)
    cut(model, "axis:conv/channels", 2)
    after = model.anatomy.axes
    assert {name for name in after if after[name] != before[name]} == {"axis:conv/channels"}


def test_the_id_of_a_removed_axis_is_never_used_again() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)
            self.spare = nn.Parameter(torch.ones(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(x)
            return out

    model = esper.trace(Spare(), (torch.randn(2, 3),))
    (spare,) = [a.id for a in model.anatomy.axes.values() if a.members == (("spare", 0),)]
    reader = next(n.name for n in model.graph.nodes if n.target == "spare")
    record = PassManager(model).apply(EliminateDead(nodes=(reader,), tensors=("spare",)))
    assert record.kind == "passed", record.line()
    assert spare not in model.anatomy.axes
    assert spare in model.identities.retired

    model.register_parameter("spare", nn.Parameter(torch.ones(5)))
    with model.graph.inserting_before(next(iter(model.graph.nodes))):
        read = model.graph.get_attr("spare")
    read.meta = {"val": model.tensor("spare"), "module": "", "source": ""}
    model.invalidate()
    (again,) = [a.id for a in model.anatomy.axes.values() if a.members == (("spare", 0),)]
    assert again == f"{spare}.2"
