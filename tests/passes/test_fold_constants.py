"""What depends on no input and no trainable parameter is computed once; all else stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper.ir.graphs_equal import graphs_equal
from esper.ir.trace import trace
from esper.propose import FoldConstants as Proposal
from esper_passes.fold_constants import FoldConstants
from tests.models import MODELS
from tests.passes.support import drift, drive, ops, refused, same_state, traced


class Rotation(nn.Module):
    """Multiplies by a table made from literals and a buffer, then by a computed parameter."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.tensor([0.5, 2.0]))
        self.weight = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(4, dtype=x.dtype)[:, None] * self.frequency
        return x * angle.cos() * (self.weight * 2)


class Stored(nn.Module):
    """What `Rotation` should become."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.constants = nn.Module()
        self.constants.register_buffer("cos", torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        table = self.constants.cos
        assert isinstance(table, Tensor)
        return torch.mul(x, table) * (self.weight * 2)


def test_graph_before_and_after() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    model = traced(Rotation(), x)
    folded, records, _ = drive(FoldConstants(), model)
    assert [record.kind for record in records] == ["passed"]
    assert graphs_equal(folded, traced(Stored(), x)) is None
    assert drift(model, folded, (x,)) == 0.0
    # The buffer that only the table read is gone; the parameter behind a product stays one.
    assert list(folded.state_dict()) == ["weight", "constants.cos"]
    folded(x).sum().backward()
    assert folded.get_parameter("weight").grad is not None


def test_second_run_finds_nothing() -> None:
    folded, _, _ = drive(FoldConstants(), traced(Rotation(), torch.randn(3, 4, 2).double()))
    again, records, remarks = drive(FoldConstants(), folded)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-constant"]
    same_state(again, folded)


@pytest.mark.parametrize("name", MODELS)
def test_zoo_outputs_stay_bit_for_bit(name: str) -> None:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    model = trace(module, args, kwargs)
    folded, records, remarks = drive(FoldConstants(), model)
    assert len(records) + len(remarks) == 1
    assert all(record.kind == "passed" for record in records)
    assert drift(model, folded, args, kwargs) == 0.0
    assert len(folded.graph.nodes) <= len(model.graph.nodes)
    trained = {name for name, _ in model.named_parameters()}
    assert {name for name, _ in folded.named_parameters()} == trained


def test_rotary_tables_of_llama_fold() -> None:
    module, args, kwargs = MODELS["llama_native_norm"](dtype=torch.float64)
    model = trace(module, args, kwargs)
    folded, _, _ = drive(FoldConstants(), model)
    assert "cos" in ops(model)
    assert not {"cos", "sin"} & set(ops(folded))


def test_large_results_stay_computed() -> None:
    model = traced(Rotation(), torch.randn(3, 4, 2).double())
    folded, _, _ = drive(FoldConstants(max_bytes=32), model)
    assert "cos" in ops(folded)
    assert "arange" not in ops(folded)


class Stateful(nn.Module):
    """Buffers that change, random numbers, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(2))
        self.norm = nn.BatchNorm1d(2)
        self.weight = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        steps = self.steps
        mean = self.norm.running_mean
        assert isinstance(steps, Tensor)
        assert mean is not None
        steps.add_(1)
        noise = torch.rand(2, dtype=x.dtype) * 2
        out: Tensor = self.norm(x) + steps * 2 + noise + self.weight.exp() + mean.exp()
        return out


def test_state_noise_and_parameters_are_not_constant() -> None:
    model = traced(Stateful(), torch.randn(3, 2).double())
    _, records, remarks = drive(FoldConstants(), model)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-constant"]
    for name, reason in (("rand", "random"), ("exp", "depends on"), ("exp_1", "depends on")):
        record = refused(model, Proposal(nodes=(name,)))
        assert (record.code, record.node) == ("not-constant", name)
        assert reason in record.reason


class Folded(nn.Module):
    """A batch norm whose statistics are a view of a buffer: training writes through the view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("statistics", torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.statistics
        assert isinstance(statistics, Tensor)
        mean, variance = statistics[0] * 2, statistics[1] * 2
        return nn.functional.batch_norm(x, mean, variance) + statistics[0].exp()


def test_what_batch_norm_statistics_are_made_of_is_no_constant() -> None:
    model = traced(Folded(), torch.randn(4, 3).double())
    _, records, remarks = drive(FoldConstants(), model)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-constant"]


def test_frozen_parameters_are_constant() -> None:
    module = Rotation().requires_grad_(False)
    folded, _, _ = drive(FoldConstants(), traced(module, torch.randn(3, 4, 2).double()))
    assert ops(folded) == ["mul", "mul"]
    assert not list(folded.parameters())


class Returned(nn.Module):
    """Hands a constant to its caller, who may write into it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, torch.arange(3)


def test_returned_constants_are_not_shared_with_the_caller() -> None:
    model = traced(Returned(), torch.randn(2).double())
    record = refused(model, Proposal(nodes=("arange",)))
    assert (record.code, record.node) == ("no-value", "arange")
    _, records, _ = drive(FoldConstants(), model)
    assert not records


class Written(nn.Module):
    """Writes into a constant through a view of a view, and reads it whole."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.zeros(4, dtype=x.dtype)
        table.view(2, 2).t().copy_(x[0, :2])
        return x.sum() + table


def test_constants_that_are_written_into_are_made_anew() -> None:
    model = traced(Written(), torch.randn(2, 3).double())
    folded, records, _ = drive(FoldConstants(), model)
    assert not records
    x = torch.randn(2, 3, dtype=torch.float64)
    assert drift(model, folded, (x,)) == 0.0


def test_unknown_node_is_refused() -> None:
    model = traced(Returned(), torch.randn(2).double())
    assert refused(model, Proposal(nodes=("nowhere",))).code == "unknown-target"
