"""The pass: proposes where kernels win, says why elsewhere, and leaves what is lowered alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper
from esper.gate.gate import Gate
from esper.ir.model import Model
from esper.passbase import Context
from esper.propose import LowerLinear
from esper_passes.contest import Contest, Way
from esper_passes.duel import Ratio
from esper_passes.example_sizes import ExampleSizes
from esper_passes.gated_contest import gated_contest
from esper_passes.linear_contests import linear_contest, low_rank_contest
from esper_passes.lower_kernels import LowerKernels
from esper_passes.raise_kernels import RaiseKernels
from tests.passes.sparse_models import forms, plant
from tests.passes.support import drive

WIN, LOSE = Ratio(2.0, 1.9, 2.1, 31), Ratio(0.8, 0.75, 0.85, 31)
DRAW = Ratio(1.3, 1.01, 1.7, 31)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def fought(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Contest], Ratio]], list[str]]:
    """Give outcomes instead of measuring; returns what was fought."""

    def install(outcome: Callable[[Contest], Ratio]) -> list[str]:
        seen: list[str] = []

        def fight(contest: Contest, *_: Any) -> Ratio:
            seen.append(contest.text())
            return outcome(contest)

        monkeypatch.setattr("esper_passes.kernel_choice.fight", fight)
        return seen

    return install


class Mlp(nn.Module):
    """A gated MLP with sparse weights, a low-rank pair, and a dense head."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(32, 48, bias=False) for _ in range(2))
        self.down = nn.Linear(48, 32)
        self.narrow, self.wide = nn.Linear(32, 4, bias=False), nn.Linear(4, 32)
        self.head = nn.Linear(32, 3)
        if sparse:
            with torch.no_grad():
                for layer in (self.gate, self.up, self.down):
                    plant(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32) -> (batch, 3)."""
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        y: Tensor = self.head(self.wide(self.narrow(x)))
        return y


def mlp(sparse: bool = True) -> tuple[Model, Context]:
    torch.manual_seed(0)
    inputs = (torch.randn(6, 32),)
    return esper.trace(Mlp(sparse).eval(), inputs), Context(inputs=(inputs, {}))


def types(records: Any) -> list[tuple[str, str]]:
    return [(r.proposal.type, r.proposal.targets[0]) for r in records]


# -- where kernels win -----------------------------------------------------------------------------


def test_kernels_go_where_they_win(fought: Any) -> None:
    seen = fought(lambda contest: WIN)
    model, context = mlp()
    lowered, records, remarks = drive(LowerKernels(), model, context)
    assert [r.kind for r in records] == ["passed"] * 3
    assert types(records) == [
        ("lower-gated-mlp", "mul"),
        ("lower-low-rank", "linear_4"),
        ("lower-linear", "linear_2"),
    ]
    assert not remarks
    assert records[2].proposal == LowerLinear(
        node="linear_2", rows=8, run=4, proposer="lower-kernels",
        evidence={"weight": "down.weight", "ratio": 2.0, "lower": 1.9, "pairs": 31},
    )  # fmt: skip
    assert seen == [
        "gated_linear on 6 x 32 to 48, 6:4:8x4",
        "gated_linear on 6 x 32 to 48, 6:4:8x4",  # against a kernel for each layer
        "low_rank_linear on 6 x 32 to 32, rank 4",
        "vnm_linear on 6 x 48 to 32, 4:6:12x4",
    ]
    x = context.inputs[0][0]  # type: ignore[index]
    torch.testing.assert_close(lowered(x), model(x))
    again, records, remarks = drive(LowerKernels(), lowered, context)
    assert (records, [r.code for r in remarks]) == ([], ["nothing-to-lower"])
    assert str(again) == str(lowered)
    back, records, _ = drive(RaiseKernels(), lowered, context)
    assert [r.kind for r in records] == ["passed"] * 3
    assert str(back) == str(model)
    assert [r.code for r in drive(RaiseKernels(), back, context)[2]] == ["no-kernel"]


@pytest.mark.parametrize("outcome", [LOSE, DRAW])
def test_where_they_do_not_win_clearly_a_remark_says_so(outcome: Ratio, fought: Any) -> None:
    fought(lambda contest: outcome)
    model, context = mlp()
    _, records, remarks = drive(LowerKernels(), model, context)
    assert records == []
    assert {(r.kind, r.code) for r in remarks} == {("missed", "kernel-slower")}
    assert [r.node for r in remarks] == ["mul", "linear_4", "linear", "linear_1", "linear_2"]
    assert f"{outcome.median:.2f}x the speed" in remarks[0].reason
    assert remarks[0].figures == {
        "ratio": outcome.median, "lower": outcome.lower, "upper": outcome.upper, "pairs": 31
    }  # fmt: skip
    assert ("quieter machine" in remarks[0].remedy) == (outcome is DRAW)
    lenient, records, _ = drive(LowerKernels(margin=0.0), model, context)
    assert len(records) == (3 if outcome is DRAW else 0)
    assert bool(lenient.kernel_ops) == (outcome is DRAW)


def test_a_fused_kernel_must_not_lose_against_smaller_ones(fought: Any) -> None:
    fought(lambda contest: LOSE if "against" in contest.facts else WIN)
    model, context = mlp()
    _, records, remarks = drive(LowerKernels(), model, context)
    assert types(records) == [
        ("lower-low-rank", "linear_4"),
        ("lower-linear", "linear"),
        ("lower-linear", "linear_1"),
        ("lower-linear", "linear_2"),
    ]
    assert [(r.code, r.node) for r in remarks] == [("kernel-slower", "mul")]
    assert "0.80x the speed of a kernel for each layer" in remarks[0].reason


def test_options(fought: Any) -> None:
    seen = fought(lambda contest: WIN)
    model, context = mlp()
    _, records, _ = drive(LowerKernels(only="down.*"), model, context)
    assert types(records) == [("lower-linear", "linear_2")]
    seen.clear()
    _, records, _ = drive(LowerKernels(choose="all"), model, context)
    assert len(records) == 3
    assert seen == []
    _, records, remarks = drive(LowerKernels(only="nothing"), model, context)
    assert (records, [r.code for r in remarks]) == ([], ["nothing-to-lower"])
    with pytest.raises(ValueError, match="margin"):
        LowerKernels(margin=-0.1)


def test_a_dense_model_offers_only_what_can_be_fused(fought: Any) -> None:
    fought(lambda contest: WIN)
    model, context = mlp(sparse=False)
    _, records, _ = drive(LowerKernels(), model, context)
    assert types(records) == [("lower-gated-mlp", "mul"), ("lower-low-rank", "linear_4")]


def test_what_stands_against_a_layer_is_told(fought: Any) -> None:
    fought(lambda contest: WIN)
    layer, other = nn.Linear(32, 32), nn.Linear(32, 32)
    other.weight = layer.weight
    with torch.no_grad():
        plant(layer.weight)
    model = esper.trace(nn.Sequential(layer, nn.ReLU(), other).eval(), (torch.randn(2, 32),))
    _, records, remarks = drive(LowerKernels(), model)
    assert records == []
    assert [(r.code, r.node) for r in remarks] == [
        ("shared-tensor", "linear"),
        ("shared-tensor", "linear_1"),
        ("nothing-to-lower", None),
    ]


# -- where the model runs --------------------------------------------------------------------------


def test_a_model_elsewhere_moves_first(fought: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fought(lambda contest: WIN)
    monkeypatch.setattr("esper_passes.kernel_choice.usable", lambda *_: "no compiler")
    model, context = mlp()
    context.backend = "onnxruntime"
    _, records, _ = drive(LowerKernels(only="down.*"), model, context)
    assert [r.proposal.type for r in records if r.proposal] == ["select-backend", "lower-linear"]
    fought(lambda contest: LOSE)
    _, records, _ = drive(LowerKernels(only="up.*"), model, context)
    assert records == []  # nobody moves for nothing


def test_a_backend_that_was_asked_for_stays(fought: Any) -> None:
    pytest.importorskip("openvino")
    fought(lambda contest: WIN)
    model, context = mlp()
    context.backend, context.gate = "openvino", Gate(backend="openvino")
    _, records, (remark,) = drive(LowerKernels(), model, context)
    assert records == []
    assert (remark.kind, remark.code) == ("missed", "backend-without-kernels")
    assert "openvino" in remark.reason


def test_a_damaged_cache_is_one_remark(fought: Any, tmp_path: Path) -> None:
    fought(lambda contest: WIN)
    (tmp_path / "esper").mkdir()
    (tmp_path / "esper" / "lowering.json").write_text("{")
    model, context = mlp()
    for expected in (["choice-cache"], []):
        _, _, remarks = drive(LowerKernels(), model, context)
        assert [r.code for r in remarks] == expected


# -- the contests themselves -----------------------------------------------------------------------


def agree(contest: Contest | Any) -> None:
    """Both ways compute the same, with the same gradient of what they read."""
    assert isinstance(contest, Contest)
    for each in (contest, contest.rival):
        if each is None:
            continue
        torch.manual_seed(3)
        ways: tuple[Way, Way] = each.ways(each.input())
        present, kernel = (way.run() for way in ways)
        torch.testing.assert_close(kernel, present, rtol=1e-4, atol=1e-4)
        gradients = []
        for way in ways:
            for leaf in way.leaves:
                leaf.requires_grad_()
            gradients.append(torch.autograd.grad(way.run().sum(), way.leaves[0])[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantised", [False, True])
def test_both_ways_compute_the_same(quantised: bool) -> None:
    model, context = mlp()
    if quantised:
        result = esper.optimize(model, "quantize{mode=weight-int8 least=1}")
        model = result.model
    sizes = ExampleSizes(model, context.inputs)
    nodes = model.nodes
    names = {"mul": gated_contest, "linear_2": linear_contest, "linear": linear_contest}
    kinds = []
    for name, find in names.items():
        contest = find(model, nodes[name], sizes)
        agree(contest)
        kinds.append(contest.facts["op"])  # type: ignore[union-attr]
    kind = "vnm_int8_linear" if quantised else "vnm_linear"
    assert kinds == ["gated_linear", kind, kind]
    if quantised:  # without runs, and without a pair of stored weights
        contest = linear_contest(model, nodes["linear_5"], sizes)
        agree(contest)
        assert contest.facts["op"] == "int8_linear"  # type: ignore[union-attr]
        assert low_rank_contest(model, nodes["linear_4"], sizes) is None
    else:
        agree(low_rank_contest(model, nodes["linear_4"], sizes))
        assert linear_contest(model, nodes["linear_5"], sizes) is None


def test_every_form_of_a_layer_competes() -> None:
    model, x = forms()
    model.float()
    sizes = ExampleSizes(model, ((x.float(),), {}))
    for name in ("linear", "linear_1", "addmm", "matmul"):
        agree(linear_contest(model, model.nodes[name], sizes))


# -- whole pipelines -------------------------------------------------------------------------------


def test_sparse_integers_compose(fought: Any) -> None:
    fought(lambda contest: WIN)
    model, context = mlp(sparse=False)
    text = "sparsify{pattern=8:1:2x4 only=down.*},quantize{mode=weight-int8 least=1 only=down.*},"
    result = esper.optimize(model, text + "lower-kernels")
    types_ = [r.proposal.type for r in result.committed if r.proposal]
    assert types_ == ["set-mask", "fold-mask", "quantize-layers", "lower-gated-mlp",
                      "lower-low-rank", "lower-linear"]  # fmt: skip
    assert result.model.kernel_ops == (
        "esper::gated_linear",
        "esper::low_rank_linear",
        "esper::vnm_int8_linear",
    )
    assert {r.code for r in result.committed} == {"not-measured"}
    assert "custom kernels inside: esper::gated_linear, " in result.summary()
    only, _ = esper.optimize(model, text.rstrip(",")), None
    x = context.inputs[0][0]  # type: ignore[index]
    torch.testing.assert_close(result.model(x), only.model(x))
