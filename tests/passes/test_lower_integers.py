"""Layers that multiply integers go into the kernel of integers, and come out again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.propose import LowerLinear, RaiseKernel
from esper.propose.lowering import LinearKernel
from esper_passes.contest import Contest
from esper_passes.example_sizes import ExampleSizes
from esper_passes.integer_layer import integer_layer
from esper_passes.linear_contests import linear_contest
from tests.passes.support import ops, refused, same_state

ROWS, RUN = 16, 8


class Layers(nn.Module):
    """A layer on rows, one on a sequence with dynamic sizes, and one without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(32, 48)
        self.sequence = nn.Linear(32, 40)
        self.plain = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x` (batch, 32), `y` (batch, length, 32)."""
        return torch.relu(self.rows(x)), self.sequence(y), self.plain(y)


@cache
def floating() -> tuple[Model, Tensor, Tensor]:
    torch.manual_seed(0)
    module = Layers().eval()
    with torch.no_grad():
        for layer in (module.rows, module.sequence, module.plain):
            inputs = layer.in_features
            for start in range(0, layer.out_features, ROWS):
                runs = torch.randperm(inputs // RUN)[: inputs // RUN // 2]
                for run in runs:
                    layer.weight[start : start + ROWS, run * RUN : (run + 1) * RUN] = 0
    x, y = torch.randn(3, 32), torch.randn(2, 5, 32)
    args: Any = (x, y)
    model = esper.trace(module, args, dynamic={"y": (1,)})
    return model, x, y


@cache
def quantised() -> Model:
    return esper.optimize(floating()[0], "quantize").model


LAYERS = {"linear_narrow": 0, "linear_1_quantised": 1, "linear_2_quantised": 2}


def proposal(node: str, kernel: LinearKernel = "vnm_dynamic_linear") -> LowerLinear:
    return LowerLinear(node=node, kernel=kernel, rows=ROWS, run=RUN)


def lower(model: Model, node: str) -> Model:
    lowered, record = model.apply(proposal(node))
    assert record.kind == "passed", record.line()
    assert record.figures["tolerance"] == "reassociates"
    assert record.figures["density"] <= 0.8
    return lowered


def test_the_expression_is_found_at_its_last_call_and_nowhere_else() -> None:
    found = [n.name for n in quantised().graph.nodes if integer_layer(n) is not None]
    assert found == list(LAYERS)
    assert not any(integer_layer(n) for n in floating()[0].graph.nodes)


@pytest.mark.parametrize("node", LAYERS)
def test_outputs_are_those_of_the_quantised_layer(node: str) -> None:
    _, x, y = floating()
    lowered = lower(quantised(), node)
    assert ops(lowered).count("vnm_dynamic_linear") == 1
    assert ops(lowered).count("_int_mm") == 2
    longer = torch.cat([y, y, 3 * y], 1)[:1], torch.zeros(2, 1, 32)
    for sequence in (y, *longer):
        for got, wanted in zip(lowered(x, sequence), quantised()(x, sequence), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("node", LAYERS)
def test_raising_gives_back_the_model(node: str) -> None:
    lowered = lower(quantised(), node)
    back, record = lowered.apply(RaiseKernel(node=node))
    assert record.kind == "passed", record.line()
    assert str(back) == str(quantised())
    assert graphs_equal(back, quantised()) is None
    same_state(back, quantised())
    assert refused(back, RaiseKernel(node=node)).code == "no-kernel"


def test_both_ways_of_a_duel_compute_the_same() -> None:
    model = quantised()
    _, x, y = floating()
    sizes = ExampleSizes(model, ((x, y), {}))
    for node in LAYERS:
        contest = linear_contest(model, model.nodes[node], sizes)
        assert isinstance(contest, Contest)
        assert contest.facts["op"] == "vnm_dynamic_linear"
        dense, packed = contest.ways(contest.input())
        torch.manual_seed(0)
        torch.testing.assert_close(dense.run(), packed.run(), rtol=1e-5, atol=1e-5)


def test_a_pipeline_goes_from_zeros_to_integers_to_kernels(tmp_path: Path) -> None:
    model, x, y = floating()
    text = f"sparsify{{pattern={ROWS}:1:2x{RUN}}},quantize,lower-kernels{{choose=all}}"
    done = esper.optimize(model, text)
    assert done.model.kernel_ops == ("esper::vnm_dynamic_linear",)
    assert ops(done.model).count("vnm_dynamic_linear") == 3
    again = esper.optimize(done.model, "lower-kernels{choose=all}")
    assert not again.committed
    esper.save(done.model, tmp_path / "low.esper")
    loaded = esper.load(tmp_path / "low.esper")
    for got, wanted in zip(loaded(x, y), done.model(x, y), strict=True):
        assert torch.equal(got, wanted)
    raised = esper.optimize(loaded, "raise-kernels").model
    assert not raised.kernel_ops
    assert ops(raised).count("_int_mm") == 3
    for got, wanted in zip(raised(x, y), done.model(x, y), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_the_same_way(dtype: torch.dtype) -> None:
    x, y = (t.to(dtype) for t in floating()[1:])
    short = copy.deepcopy(floating()[0]).to(dtype)
    model = esper.trace(short, (x, y), dynamic={"y": (1,)})
    integers = esper.optimize(model, "quantize").model
    found = [n.name for n in integers.graph.nodes if integer_layer(n) is not None]
    assert found == ["linear_narrow", "linear_1_quantised", "linear_2_quantised"]
    limit = torch.finfo(dtype).eps  # both round once, from sums that differ in their last bits
    for node in found:
        lowered = lower(integers, node)
        for sequence in (y, torch.zeros(2, 1, 32, dtype=dtype)):
            wanted, got = integers(x, sequence), lowered(x, sequence)
            for each, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(each, other, rtol=limit, atol=1e-6)
        back, record = lowered.apply(RaiseKernel(node=node))
        assert record.kind == "passed", record.line()
        assert graphs_equal(back, integers) is None
        same_state(back, integers)
        sizes = ExampleSizes(integers, ((x, y), {}))
        contest = linear_contest(integers, integers.nodes[node], sizes)
        assert isinstance(contest, Contest)
        assert contest.facts["dtype"] == str(dtype).removeprefix("torch.")
        dense, packed = contest.ways(contest.input())
        torch.testing.assert_close(dense.run(), packed.run(), rtol=limit, atol=1e-5)


def test_wide_rows_that_serve_others_stay() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    network = nn.Sequential(nn.Linear(32, 48, dtype=torch.bfloat16), nn.ReLU()).eval()
    model = esper.optimize(esper.trace(network, (x,)), "quantize").model
    found = integer_layer(model.nodes["linear_narrow"])
    assert found is not None
    assert (found.x.name, found.rows.name) == ("input_1", "linear_wide")
    assert [call.name for call in found.calls[:2]] == ["linear_wide", "linear_abs"]
    assert found.full == found.calls
    assert found.full[-1].name == "linear_biased"
    (relu,) = (n for n in model.graph.nodes if n.target is torch.ops.aten.relu.default)
    with model.graph.inserting_before(relu):
        other = model.graph.call_function(torch.ops.aten.sum.default, (found.rows,))
        more = model.graph.call_function(torch.ops.aten.add.Tensor, (relu.args[0], other))
        other.meta["val"] = found.rows.meta["val"].sum()
        more.meta["val"] = relu.args[0].meta["val"].float()
    relu.replace_input_with(relu.args[0], more)
    assert integer_layer(model.nodes["linear_narrow"]) is None
    inner = integer_layer(model.nodes["linear_biased"])
    assert inner is not None
    assert (inner.x.name, inner.rows.name, inner.full) == ("linear_wide", "linear_wide", ())


def test_integers_without_zeros_are_left_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32)
    model = esper.trace(nn.Sequential(nn.Linear(32, 16)).eval(), (x,))
    whole = esper.optimize(model, "quantize{least=1},lower-kernels{choose=all}")
    assert not whole.model.kernel_ops
    (record,) = [r for r in whole.records if r.code == "nothing-to-lower"]
    assert "sparsify" in record.remedy
    (node,) = [n.name for n in whole.model.graph.nodes if integer_layer(n) is not None]
    assert refused(whole.model, proposal(node)).code == "nothing-to-skip"


@pytest.mark.parametrize(
    ("node", "kernel", "code"),
    [
        ("linear_narrow", "vnm_linear", "other-weight"),
        ("linear_narrow", "vnm_int8_linear", "other-weight"),
        ("linear_product", "vnm_dynamic_linear", "no-weight"),
        ("linear_scaled", "vnm_dynamic_linear", "no-weight"),
        ("relu", "vnm_dynamic_linear", "no-weight"),
    ],
)
def test_what_does_not_fit_is_refused(node: str, kernel: LinearKernel, code: str) -> None:
    assert refused(quantised(), proposal(node, kernel)).code == code
    assert refused(floating()[0], proposal("linear")).code == "other-weight"


def edited(change: Callable[[Model], None]) -> Model:
    model = copy.deepcopy(quantised())
    change(model)
    model.refresh()
    return model


def test_a_value_from_inside_that_serves_others_is_refused() -> None:
    def share(model: Model) -> None:
        (output,) = model.graph.find_nodes(op="output")
        first, *others = output.args[0]
        with model.graph.inserting_before(output):
            more = model.graph.call_function(
                torch.ops.aten.add.Tensor, (first, model.nodes["linear_step"])
            )
            more.meta["val"] = first.meta["val"]
        output.args = ((more, *others),)

    assert refused(edited(share), proposal("linear_narrow")).code == "shared-value"


def test_elsewhere_than_on_a_cpu_there_is_no_such_kernel() -> None:
    def move(model: Model) -> None:
        (read,) = (n for n in model.graph.nodes if n.target == "rows.weight_int8")
        read.meta["val"] = torch.empty(48, 32, dtype=torch.int8, device="meta")

    model = edited(lambda _: None)
    move(model)
    assert refused(model, proposal("linear_narrow")).code == "no-kernel-there"
    _, x, y = floating()
    found = linear_contest(model, model.nodes["linear_narrow"], ExampleSizes(model, ((x, y), {})))
    assert found is None


@pytest.mark.parametrize(
    ("node", "position", "value"),
    [("linear_floor", 1, 1e-3), ("linear_step", 1, 128), ("linear_largest", 1, [0])],
)
def test_another_expression_is_no_such_layer(node: str, position: int, value: Any) -> None:
    def change(model: Model) -> None:
        model.nodes[node].update_arg(position, value)

    assert integer_layer(edited(change).nodes["linear_narrow"]) is None
    assert integer_layer(edited(lambda _: None).nodes["linear_narrow"]) is not None


def test_rounding_in_half_precision_is_refused() -> None:
    short = copy.deepcopy(quantised()).to(torch.bfloat16)
    x, y = (t.bfloat16() for t in floating()[1:])
    model = esper.trace(short, (x, y), dynamic={"y": (1,)})
    found = [n.name for n in model.graph.nodes if integer_layer(n) is not None]
    assert len(found) == len(LAYERS)
    assert refused(model, proposal(found[0])).code == "mixed-dtypes"
