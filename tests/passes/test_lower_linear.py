"""Lowered layers compute what dense ones do; raising gives back the same model, bit for bit."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import esper
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.propose import FoldMask, LowerLinear, PruneUnits, RaiseKernel, SetMask, parse
from tests import oracle
from tests.passes.sparse_models import FORMS, forms, plant
from tests.passes.support import ops, refusal, refused, same_state, traced

F64 = torch.float64


@pytest.fixture(scope="module")
def model() -> Model:
    return forms()[0]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return forms()[1]


def lower(model: Model, node: str) -> Model:
    _, rows, run = FORMS[node]
    lowered, record = model.apply(LowerLinear(node=node, rows=rows, run=run))
    assert record.kind == "passed", record.line()
    assert record.figures["density"] == 0.5
    assert record.figures["tolerance"] == "reassociates"
    return lowered


def identical(a: Model, b: Model) -> None:
    """Assert that two models are the same to the letter and the bit."""
    assert str(a) == str(b)
    assert graphs_equal(a, b) is None
    same_state(a, b)
    assert [n.meta["module"] for n in a.graph.nodes] == [n.meta["module"] for n in b.graph.nodes]
    assert {n: x.unit_ids for n, x in a.anatomy.axes.items()} == {
        n: x.unit_ids for n, x in b.anatomy.axes.items()
    }


@pytest.mark.parametrize("node", FORMS)
def test_outputs_and_gradients_are_those_of_the_dense_layer(
    node: str, model: Model, x: Tensor
) -> None:
    lowered = lower(model, node)
    assert ops(lowered).count("vnm_linear") == 1
    oracle.close(lowered(x), model(x), node)
    own, dense = (oracle.gradients(m, (x,), {}) for m in (lowered, model))
    packed = FORMS[node][0]
    assert own.keys() == dense.keys()
    unpack: Any = lowered.plan(RaiseKernel(node=node)).state.ops[packed][0]  # type: ignore[union-attr]
    for name, wanted in dense.items():
        found = own[name]
        assert found is not None
        assert wanted is not None
        if name == packed:  # what was dropped has no gradient any more
            kept = unpack(torch.ones_like(found)) > 0
            oracle.close(unpack(found), wanted.where(kept, 0), name)
        else:
            oracle.close(found, wanted, name)


@pytest.mark.parametrize("node", FORMS)
def test_raising_gives_back_the_model(node: str, model: Model) -> None:
    lowered = lower(model, node)
    back, record = lowered.apply(RaiseKernel(node=node))
    assert record.kind == "passed", record.line()
    identical(back, model)
    assert refused(back, RaiseKernel(node=node)).code == "no-kernel"


def test_all_at_once_and_in_another_order(model: Model, x: Tensor) -> None:
    lowered = copy.deepcopy(model)
    manager = esper.PassManager(lowered, verify="full")
    for node, (_, rows, run) in FORMS.items():
        assert manager.apply(LowerLinear(node=node, rows=rows, run=run)).kind == "passed"
    oracle.close(lowered(x), model(x), "all")
    assert lowered.nbytes() < 0.7 * model.nbytes()
    assert lowered.kernel_ops == ("esper::vnm_linear",)
    for node in FORMS:
        assert manager.apply(RaiseKernel(node=node)).kind == "passed"
    identical(lowered, model)


@cache
def single(outputs: int, inputs: int, bias: bool) -> Model:
    layer = nn.Linear(inputs, outputs, bias=bias)
    return traced(nn.Sequential(layer), torch.randn(3, inputs, dtype=F64))


@settings(max_examples=40)
@given(st.data())
def test_any_size_goes_there_and_back(data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.sampled_from([(1, 4), (7, 9), (16, 24)]))
    rows, run = data.draw(st.integers(1, outputs + 3)), data.draw(st.integers(1, inputs))
    model = copy.deepcopy(single(outputs, inputs, outputs != 7))
    groups, runs = -(-outputs // rows), -(-inputs // run)
    kept = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=groups * runs, max_size=groups * runs))
    ).reshape(groups, runs)
    with torch.no_grad():
        wide = kept.repeat_interleave(rows, 0).repeat_interleave(run, 1)
        weight = model.get_parameter("0.weight")
        weight.copy_(torch.randn_like(weight).where(wide[:outputs, :inputs], 0))
    lowered, record = model.apply(LowerLinear(node="linear", rows=rows, run=run))
    if max(1, int(kept.sum(1).max())) == runs:
        assert (record.kind, record.code) == ("missed", "nothing-to-skip")
        return
    assert record.kind == "passed", record.line()
    x = torch.randn(3, inputs, dtype=F64)
    oracle.close(lowered(x), model(x), "lowered")
    back, record = lowered.apply(RaiseKernel(node="linear"))
    assert record.kind == "passed", record.line()
    identical(back, model)


# -- masks -----------------------------------------------------------------------------------------


def test_a_mask_is_taken_at_its_word(x: Tensor) -> None:
    model = traced(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), x)
    masked, _ = model.apply(SetMask(tensor="0.weight", pattern="8x4"))
    with torch.no_grad():  # what is on may be zero by chance, and off whatever it is
        masked.get_parameter("0.weight")[:, :16].zero_()
    folded, _ = masked.apply(FoldMask(tensor="0.weight"))
    wish = LowerLinear(node="linear", rows=8, run=4)
    lowered, record = masked.apply(wish)
    assert record.kind == "passed", record.line()
    assert not lowered.ecology.sparsity()
    assert {name for name, _ in lowered.all_tensors()} - {n for n, _ in model.all_tensors()} == {
        "0.weight_index"
    }
    oracle.close(lowered(x), masked(x), "masked")
    back, record = lowered.apply(RaiseKernel(node="linear"))
    assert record.kind == "passed", record.line()
    identical(back, folded)


# -- axes and regions ------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two branches, whose last layers end them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 16)
        self.a = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.b = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name in ("stem.weight", "a.0.weight", "a.2.weight"):
                    plant(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.relu(self.stem(x))
        x = x + self.a(x)
        y: Tensor = self.head(x + self.b(x))
        return y


def test_ids_survive_and_what_is_not_packed_can_be_cut(x: Tensor) -> None:
    model = traced(Residual(), x)
    phages, slots = list(model.anatomy.phages), list(model.anatomy.slots)
    units = {name: axis.unit_ids for name, axis in model.anatomy.axes.items()}
    lowered = model
    for node in ("linear", "linear_1", "linear_2"):
        lowered, record = lowered.apply(LowerLinear(node=node, rows=8, run=4))
        assert record.kind == "passed", record.line()
    found = lowered.anatomy
    assert (list(found.phages), list(found.slots)) == (phages, slots)
    assert {name: axis.unit_ids for name, axis in found.axes.items()} == units
    assert {f"{name}.out".replace("phage", "slot") for name in phages} <= set(slots)
    asleep = found.axes["axis:stem/units"]
    assert asleep.frozen_reason == "stem.weight is packed for a kernel"
    assert not asleep.members
    record = refused(lowered, PruneUnits(axis="axis:a.0/neurons", units=(1,)))
    assert record.code == "frozen-axis"
    assert "packed weight at %linear_" in record.reason
    cut = oracle.assert_exact_cut(lowered, {"axis:b.0/neurons": [1, 5]}, (x,), {}, train=False)
    back = cut
    for node in ("linear_2", "linear", "linear_1"):
        back, record = back.apply(RaiseKernel(node=node))
        assert record.kind == "passed", record.line()
    wanted, _ = model.apply(PruneUnits(axis="axis:b.0/neurons", units=(1, 5)))
    identical(back, wanted)


def test_copies_files_and_new_traces(model: Model, x: Tensor, tmp_path: Any) -> None:
    lowered = model
    for node in FORMS:
        lowered = lower(lowered, node)
    wanted = lowered(x)
    esper.save(lowered, tmp_path / "m.esper")
    loaded = esper.load(tmp_path / "m.esper")
    assert str(loaded) == str(lowered)
    assert torch.equal(loaded(x), wanted)
    back = loaded
    for node in FORMS:
        back, record = back.apply(RaiseKernel(node=node))
        assert record.kind == "passed", record.line()
    identical(back, model)
    again = esper.trace(lowered, (x,))  # as from a .pt2 file: what was there is forgotten
    assert torch.equal(again(x), wanted)
    for node in [n.name for n in again.graph.nodes if "vnm" in str(n.target)]:
        again, record = again.apply(RaiseKernel(node=node))
        assert record.kind == "passed", record.line()
    assert ops(again).count("linear") == 5
    oracle.close(again(x), model(x), "plainest ops")


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (LowerLinear(node="relu", rows=8, run=4), "no-weight"),
        (LowerLinear(node="nobody", rows=8, run=4), "unknown-target"),
        (LowerLinear(node="linear_2", rows=8, run=4), "nothing-to-skip"),
        (LowerLinear(node="linear", rows=16, run=8), "nothing-to-skip"),
        (LowerLinear(node="linear", rows=8, run=33), "no-runs"),
        (LowerLinear(node="linear", kernel="int8_linear"), "other-weight"),
        (RaiseKernel(node="linear"), "no-kernel"),
    ],
)
def test_refusals(proposal: Any, code: str, model: Model) -> None:
    assert refused(model, proposal).code == code
    assert parse(proposal.model_dump_json()) == proposal


class Shared(nn.Module):
    """A layer that is called twice, and one whose weight has another precision than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = nn.Linear(32, 32), nn.Linear(32, 8)
        with torch.no_grad():
            plant(self.twice.weight)
            plant(self.once.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32) -> (batch, 8)."""
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = self.once(self.twice(torch.relu(self.twice(x))))
        return y


def test_more_refusals() -> None:
    x = torch.randn(3, 32)
    model = esper.trace(nn.Sequential(Shared()).eval(), (x,))
    nodes = [n.name for n in model.graph.nodes if "linear" in str(n.target)]
    wishes = [LowerLinear(node=node, rows=8, run=4) for node in nodes]
    codes = [refusal(model, wish).code for wish in wishes]
    assert codes == ["no-weight"] * 3  # the weight is cast at each call
    layer, other = nn.Linear(32, 32), nn.Linear(32, 32)
    tied = nn.Sequential(layer, nn.ReLU(), other)
    other.weight = layer.weight
    with torch.no_grad():
        plant(layer.weight)
    found = refusal(traced(tied, x.double()), LowerLinear(node="linear", rows=8, run=4))
    assert (found.code, found.node) == ("shared-tensor", "linear")


def test_one_bias_for_all_outputs_is_refused() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.shift = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.ones(1))
            with torch.no_grad():
                plant(self.matrix.T)

        def forward(self, x: Tensor) -> Tensor:
            """(batch, 32) -> (batch, 32)."""
            return torch.addmm(self.shift, x, self.matrix)

    x = torch.randn(3, 32, dtype=torch.float64)
    model = traced(Broadcast(), x)
    wish = LowerLinear(node="addmm", rows=8, run=4)
    assert refused(model, wish).code == "unusual-form"
    assert not esper.optimize(model, "lower-kernels{choose=all}").model.kernel_ops


@pytest.mark.parametrize(
    "given_",
    [
        {"kernel": "vnm_linear"},
        {"kernel": "vnm_linear", "rows": 8},
        {"kernel": "int8_linear", "rows": 8, "run": 4},
        {"kernel": "of nobody", "rows": 8, "run": 4},
    ],
)
def test_a_kernel_of_runs_has_rows_and_runs(given_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rows and run|Input should be"):
        LowerLinear(node="linear", **given_)
