"""Nodes and tensors that reach no output go; effects, ports and counters stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.ir import shapes
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.propose import EliminateDead as Proposal
from esper_passes.eliminate_dead import EliminateDead
from tests.passes.support import drift, drive, ops, refused, same_state, traced


class Spare(nn.Module):
    """Holds a layer that nobody calls; export removes dead calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.spare = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.used(x))
        return out


class Lean(nn.Module):
    """What `Spare` should become."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.used(x))
        return out


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def with_dead_nodes() -> Model:
    """`Spare` with a call of the spare layer whose result goes nowhere."""
    model = traced(Spare(), X)
    nodes = model.nodes
    read = {str(n.target): n for n in model.graph.nodes if n.op == "get_attr"}
    with model.graph.inserting_before(nodes["output"]):
        call = model.graph.call_function(
            torch.ops.aten.linear.default,
            (nodes["linear"], read["spare.weight"], read["spare.bias"]),
            name="lost",
        )
        after = model.graph.call_function(torch.ops.aten.relu.default, (call,), name="lost_relu")
    for node in (call, after):
        node.meta = {"val": None, "module": "", "source": ""}
    shapes.propagate(model, [call, after])
    model.invalidate()
    model.recompile()
    return model


def test_graph_before_and_after() -> None:
    model = with_dead_nodes()
    lean, records, _ = drive(EliminateDead(), model)
    assert [record.kind for record in records] == ["passed"]
    assert records[0].figures["elements_removed"] == 16
    assert graphs_equal(lean, traced(Lean(), X)) is None
    assert list(lean.state_dict()) == list(Lean().state_dict())
    assert drift(model, lean, (X,)) == 0.0


def test_counter_of_a_living_norm_stays() -> None:
    lean, _, _ = drive(EliminateDead(), with_dead_nodes())
    lean.train()(X)
    assert int(lean.state_dict()["norm.num_batches_tracked"]) == 1
    # In training mode the counting node is an effect, though nobody uses its value.
    again, records, remarks = drive(EliminateDead(), lean)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-dead"]
    same_state(again, lean)


def test_second_run_finds_nothing() -> None:
    lean, _, _ = drive(EliminateDead(), with_dead_nodes())
    again, records, remarks = drive(EliminateDead(), lean)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-dead"]
    assert ops(again) == ops(lean)


def test_training_statistics_of_an_unused_norm_are_an_effect() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return x * 2

    model = traced(Watching(), X)
    if "batch_norm" in ops(model):
        model.train()
        lean, _, _ = drive(EliminateDead(), model)
        assert "batch_norm" in ops(lean)
    else:  # export dropped it already, and its tensors are unread
        lean, records, _ = drive(EliminateDead(), model)
        assert records[0].kind == "passed"
        assert not lean.state_dict()


def test_living_nodes_and_tensors_are_refused() -> None:
    model = with_dead_nodes()
    record = refused(model, Proposal(nodes=("linear",)))
    assert (record.code, record.node) == ("live-node", "linear")
    record = refused(model, Proposal(nodes=("lost",)))
    assert record.code == "live-node"
    assert "lost_relu" in record.reason
    assert refused(model, Proposal(nodes=("output",))).code == "live-node"
    assert refused(model, Proposal(tensors=("used.weight",))).code == "live-tensor"
    assert refused(model, Proposal(tensors=("spare.weight",))).code == "live-tensor"
    assert refused(model, Proposal(tensors=("norm.num_batches_tracked",))).code == "live-tensor"
    assert refused(model, Proposal(nodes=("nowhere",))).code == "unknown-target"
    assert refused(model, Proposal(tensors=("nowhere",))).code == "unknown-target"


def test_tied_names_count_as_readers() -> None:
    class TiedPair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.first.weight = self.second.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(x)
            return out

    model = traced(TiedPair(), X)
    lean, records, _ = drive(EliminateDead(), model)
    assert records[0].kind == "passed"
    assert "first.bias" not in lean.state_dict()
    assert "second.weight" in lean.state_dict()
    assert drift(model, lean, (X,)) == 0.0
