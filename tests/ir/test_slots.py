"""Slots at borders of regions, by glob, and by a marker in the user's model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir.model import Model
from esper.propose import DropRegion, FuseConvBN
from tests.ecology.hosts import Vectors, host


def test_a_marker_leaves_no_trace_but_the_slot() -> None:
    """Same state dict, same text as the model without it, in both modes."""
    marked, plain = Vectors(), Vectors()
    setattr(plain, "mark", nn.Identity())  # noqa: B010 - another type
    plain.load_state_dict(marked.state_dict())
    args = (torch.randn(2, 6),)
    for mode in (True, False):
        model, bare = (esper.trace(m.train(mode), args) for m in (marked, plain))
        assert str(model) == str(bare)
        assert model.notes == []
        assert model.anatomy.slots.keys() - bare.anatomy.slots.keys() == {"slot:mark"}
    assert torch.equal(marked(*args), plain(*args))


class Marked(nn.Module):
    """Markers on an input, before an in-place op, on an output, twice, under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last, self.low = (esper.Slot() for _ in range(4))
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.first(x))
        x = self.middle(x).relu_()
        x = self.middle(self.drop(x))
        with torch.autocast("cpu", torch.bfloat16):
            x = self.low(self.fc(x))
        last: Tensor = self.last(x)
        return last


def test_markers_in_awkward_places() -> None:
    model = esper.trace(Marked(), (torch.randn(2, 4),))
    nodes, slots = model.nodes, model.anatomy.slots
    places = {name: slots[name].node for name in model.find("slot:*") if not name.endswith(".out")}
    assert places.keys() == {
        *("slot:first", "slot:middle", "slot:middle.2", "slot:low", "slot:last")
    }
    assert nodes[places["slot:first"]].op == "placeholder"
    assert nodes[places["slot:middle"]].target is torch.ops.aten.linear.default
    assert nodes[places["slot:middle.2"]].target is torch.ops.aten.dropout.default
    assert places["slot:last"] == places["slot:low"]
    assert not model.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default)


def test_an_alias_of_another_origin_stays() -> None:
    class Aliased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.alias.default(x) + 1  # type: ignore[no-any-return]

    model = esper.trace(Aliased(), (torch.randn(2, 4),))
    assert model.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default)
    assert model.anatomy.slots == {}


def test_globs_name_modules() -> None:
    model = host("vectors")
    assert model.declare_slots("layers.*.0") == ["slot:layers.0.0.out", "slot:layers.1.0.out"]
    assert model.anatomy.slots["slot:layers.1.0.out"].shape[-1] == 10
    assert model.declare_slots("layers.*") == ["slot:layers.0.out", "slot:layers.1.out"]
    with pytest.raises(esper.EsperError, match=r"did you mean layers\.0"):
        model.declare_slots("layer.0")
    with pytest.raises(esper.EsperError, match="no module that gives one value"):
        model.declare_slots("*.*.*.*")
    traced = esper.trace(Vectors(), (torch.randn(2, 6),), slots=["stem"])
    assert "slot:stem.out" in traced.anatomy.slots


def test_slots_stay_with_copies_and_files(tmp_path: Path) -> None:
    model = host("vectors")
    model.declare_slots("layers.*.0")
    esper.save(model, tmp_path / "model.esper")
    for other in (copy.deepcopy(model), esper.load(tmp_path / "model.esper")):
        assert other.anatomy.slots == model.anatomy.slots


def applied(model: Model, *proposals: esper.propose.ProposalBase) -> None:
    for proposal in proposals:
        record = esper.PassManager(model).apply(proposal)
        assert record.kind == "passed", record.line()


def test_slots_follow_the_value_when_its_node_is_replaced() -> None:
    model = host("images").eval()
    model.declare_slots("block.1")
    (norm,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    convolution = norm.args[0]
    assert isinstance(convolution, torch.fx.Node)
    assert model.anatomy.slots["slot:block.1.out"].node == norm.name
    applied(model, FuseConvBN(convolution=convolution.name, batch_norm=norm.name))
    slot = model.anatomy.slots["slot:block.1.out"]
    assert model.nodes[slot.node].target is torch.ops.aten.conv2d.default


def test_a_slot_whose_value_goes_is_gone_and_comes_back_with_it() -> None:
    model = host("vectors")
    model.declare_slots("layers.1.0")
    manager = esper.PassManager(model)
    before = dict(model.anatomy.slots)
    with manager.transaction() as transaction:
        assert manager.apply(DropRegion(region="phage:layers.1")).kind == "passed"
        assert "slot:layers.1.0.out" not in model.anatomy.slots
        transaction.roll_back()
    assert model.anatomy.slots == before
