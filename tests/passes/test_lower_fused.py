"""Gated MLPs and low-rank pairs in one op: the same function, cuttable where dense, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper
from esper.ir.ecology import SlotLife
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.propose import (
    LowerGatedMlp,
    LowerLowRank,
    ProposalBase,
    QuantizeLayers,
    RaiseKernel,
    SetMask,
    parse,
)
from tests import oracle
from tests.passes.sparse_models import plant
from tests.passes.support import ops, refused, same_state, traced

F64 = torch.float64
X = torch.linspace(-2, 2, 5 * 16, dtype=F64).reshape(5, 16).sin()


class Gated(nn.Module):
    """down(act(gate(x)) * up(x)), or with the factors the other way round."""

    def __init__(self, act: Any, swap: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(16, 32, bias=bias), nn.Linear(16, 32, bias=False)
        self.down = nn.Linear(32, 16)
        self.act, self.swap = act, swap

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16) -> (batch, 16)."""
        if self.swap:
            hidden = self.up(x) * self.act(self.gate(x))
        else:
            hidden = self.act(self.gate(x)) * self.up(x)
        out: Tensor = x + self.down(hidden)
        return out


def gated(act: Any = functional.silu, **options: Any) -> Model:
    torch.manual_seed(0)
    return traced(Gated(act, **options), X)


def lower(model: Model, *wishes: ProposalBase) -> Model:
    for wish in wishes:
        model, record = model.apply(wish)
        assert record.kind == "passed", record.line()
    return model


def there_and_back(model: Model, wish: Any, packed: Any = ()) -> Model:
    """Lower, compare outputs and gradients with the dense model, raise; gives the lowered one."""
    lowered = lower(model, wish)
    oracle.close(lowered(X), model(X), "outputs")
    own, dense = (oracle.gradients(m, (X,), {}) for m in (lowered, model))
    for name, gradient in dense.items():
        if name not in packed:
            assert gradient is not None
            found = own[name]
            assert found is not None
            oracle.close(found, gradient, name)
    back = lower(lowered, RaiseKernel(node=wish.node))
    assert str(back) == str(model)
    assert graphs_equal(back, model) is None
    same_state(back, model)
    assert parse(wish.model_dump_json()) == wish
    return lowered


# -- gated MLPs ------------------------------------------------------------------------------------

ACTS: dict[str, Any] = {
    "silu": functional.silu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_every_activation_in_either_order(act: str, swap: bool) -> None:
    lowered = there_and_back(gated(ACTS[act], swap=swap), LowerGatedMlp(node="mul"))
    assert ops(lowered) == ["gated_linear", "linear", "add"]
    assert lowered.nodes["mul"].args[7] == act


def test_weights_with_the_same_runs() -> None:
    model = gated()
    with torch.no_grad():
        plant(model.get_parameter("gate.weight"))
        plant(model.get_parameter("up.weight"), keep=1)
    lowered = there_and_back(
        model, LowerGatedMlp(node="mul", rows=8, run=4), ("gate.weight", "up.weight")
    )
    assert lowered.get_parameter("gate.weight").shape == (32, 8)
    assert lowered.get_parameter("up.weight").shape == (32, 4)
    record = refused(model, LowerGatedMlp(node="mul", rows=16, run=8))
    assert record.code == "nothing-to-skip"


def test_masked_and_int8_weights() -> None:
    model = gated()
    masked = lower(
        model,
        SetMask(tensor="gate.weight", pattern="8:1:2x4"),
        SetMask(tensor="up.weight", pattern="8:1:2x4"),
    )
    lowered = lower(masked, LowerGatedMlp(node="mul", rows=8, run=4))
    oracle.close(lowered(X), masked(X), "masked")
    assert not lowered.ecology.sparsity()
    small = lower(model, *(QuantizeLayers(nodes=(f"linear{n}",)) for n in ("", "_1")))
    small.float()
    x = X.float()
    lowered = lower(small, LowerGatedMlp(node="mul"))
    torch.testing.assert_close(lowered(x), small(x))
    back = lower(lowered, RaiseKernel(node="mul"))
    assert str(back) == str(small)
    same_state(back, small)


def test_neurons_of_a_dense_one_can_be_cut() -> None:
    model = there_and_back(gated(), LowerGatedMlp(node="mul"))
    (hidden,) = [name for name, axis in model.anatomy.axes.items() if axis.size == 32]
    cut = oracle.assert_exact_cut(model, {hidden: [0, 7, 31]}, (X,), {})
    assert cut.get_parameter("gate.weight").shape == (29, 16)
    lower(cut, RaiseKernel(node="mul"))


def test_after_a_new_trace_plain_ops_come_back() -> None:
    model = gated(ACTS["gelu_tanh"], swap=True)
    lowered = lower(model, LowerGatedMlp(node="mul"))
    again = esper.trace(lowered, (X,))
    (node,) = [n.name for n in again.graph.nodes if "gated" in str(n.target)]
    back = lower(again, RaiseKernel(node=node))
    oracle.close(back(X), model(X), "plain ops")
    assert ops(back) == ["linear", "gelu", "linear", "mul", "linear", "add"]


class Near(nn.Module):
    """Products that are almost gated MLPs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = (nn.Linear(16, 16, bias=kind == "bias") for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        a, b, act = self.a, self.b, functional.silu
        if self.kind == "other input":
            return act(a(x)) * b(x + 1)
        if self.kind == "no activation":
            return a(x) * b(x)
        if self.kind == "one layer":
            return act(a(x)) * x
        if self.kind == "other activation":
            return torch.tanh(a(x)) * b(x)
        if self.kind == "read twice":
            gate = act(a(x))
            return gate * b(x) + gate
        return act(a(x)) * b(x)


@pytest.mark.parametrize(
    "kind",
    ["other input", "no activation", "one layer", "other activation", "read twice", "bias"],
)
def test_near_misses(kind: str) -> None:
    model = traced(Near(kind), X)
    assert refused(model, LowerGatedMlp(node="mul")).code == "no-gated-mlp"


def test_a_slot_keeps_its_value() -> None:
    model = gated()
    model.ecology.set("slot:mine", SlotLife(input="silu"))
    record = refused(model, LowerGatedMlp(node="mul"))
    assert (record.code, record.node) == ("occupied-value", "slot:mine")


def test_runs_are_given_whole() -> None:
    with pytest.raises(ValueError, match="both rows and run"):
        LowerGatedMlp(node="mul", rows=8)


# -- low-rank pairs --------------------------------------------------------------------------------


class Pair(nn.Module):
    """A thin value between two layers."""

    def __init__(self, wide: int = 4, bias: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, wide, bias=bias), nn.Linear(wide, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16) -> (batch, 24)."""
        y: Tensor = self.up(self.down(x)).relu()
        return y


class Columns(nn.Module):
    """The same with weights stored as (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(s)) for s in ((16, 4), (4, 24)))
        self.shift = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 16) -> (batch, 24)."""
        return torch.addmm(self.shift, x @ self.first, self.second).relu()


@pytest.mark.parametrize("columns", [False, True])
def test_pairs_there_and_back(columns: bool) -> None:
    model = traced(Columns() if columns else Pair(), X)
    node = "addmm" if columns else "linear_1"
    packed = ("first", "second") if columns else ()
    lowered = there_and_back(model, LowerLowRank(node=node), packed)
    assert ops(lowered) == ["low_rank_linear", "relu"]
    again = esper.trace(lowered, (X,))
    (name,) = [n.name for n in again.graph.nodes if "low_rank" in str(n.target)]
    back = lower(again, RaiseKernel(node=name))
    oracle.close(back(X), model(X), "plain ops")
    assert ops(back) == ["linear", "linear", "relu"]


def test_ranks_can_be_cut() -> None:
    lowered = lower(traced(Pair(), X), LowerLowRank(node="linear_1"))
    axis = next(name for name, axis in lowered.anatomy.axes.items() if axis.size == 4)
    oracle.assert_exact_cut(lowered, {axis: [1]}, (X,), {})


def test_what_is_no_pair() -> None:
    for module in (Pair(bias=True), Pair(wide=16)):
        model = traced(module, X)
        assert refused(model, LowerLowRank(node="linear_1")).code == "no-low-rank-pair"
        assert refused(model, LowerLowRank(node="linear")).code == "no-low-rank-pair"
    masked = lower(traced(Pair(), X), SetMask(tensor="up.weight", pattern="1:2"))
    assert refused(masked, LowerLowRank(node="linear_1")).code == "no-low-rank-pair"
    model = traced(Pair(), X)
    model.ecology.set("slot:mine", SlotLife(output="linear", input="linear"))
    assert refused(model, LowerLowRank(node="linear_1")).code == "occupied-value"
