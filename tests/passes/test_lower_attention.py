"""Attention projections in one op: the same function, axes that can be cut, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import esper
from esper.apply import Applier, Journal
from esper.ir.ecology import SlotLife
from esper.ir.model import Model
from esper.propose import LowerAttentionProjections, QuantizeLayers, RaiseKernel, parse
from esper_passes import lower_attention
from esper_passes.attention_contest import attention_contest
from esper_passes.contest import Contest
from esper_passes.example_sizes import ExampleSizes
from tests import oracle
from tests.passes.attention_models import HEADS, SIZE, WIDTH, Attention
from tests.passes.support import ops, refused, same_state, traced

X = torch.linspace(-2, 2, 2 * 5 * WIDTH, dtype=torch.float64).reshape(2, 5, WIDTH).sin()
WISH, BACK = LowerAttentionProjections(node="linear"), RaiseKernel(node="linear")


def model_of(*args: Any, dynamic: Any = "batch", **options: Any) -> Model:
    torch.manual_seed(0)
    return traced(Attention(*args, **options), X, dynamic=dynamic)


def apply(model: Model, *wishes: Any) -> Model:
    for wish in wishes:
        model, record = model.apply(wish)
        assert record.kind == "passed", record.line()
    return model


CASES: list[Any] = [
    {},
    {"kv": 2},
    {"kv": 1, "bias": False},
    {"form": "permute"},
    {"dynamic": {"x": [0, 1]}},
    {"dynamic": "static"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_there_and_back(case: Any) -> None:
    model = model_of(**case)
    lowered = apply(model, WISH)
    kv = case.get("kv", HEADS)
    assert lowered.get_parameter("q.weight").shape == ((HEADS + 2 * kv) * SIZE, WIDTH)
    assert "k.weight" not in lowered.state_dict()
    assert ops(lowered).count("attention_projections") == 1
    assert "view" not in ops(lowered)
    oracle.close(lowered(X), model(X), "outputs")
    own, dense = (oracle.gradients(m, (X,), {}) for m in (lowered, model))
    for leaf in ("weight", "bias") if case.get("bias", True) else ("weight",):
        wanted = torch.cat([dense[f"{name}.{leaf}"] for name in "qkv"])  # type: ignore[misc]
        oracle.close(own[f"q.{leaf}"], wanted, leaf)  # type: ignore[arg-type]
    back = apply(lowered, BACK)
    assert sorted(back.state_dict()) == sorted(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert sorted(ops(back)) == sorted(ops(model) + ["sym_size"] * ("x" in case.get("dynamic", "")))
    oracle.close(back(X), model(X), "back")
    names = {n.name: n.meta["module"] for n in back.graph.nodes if n.op == "call_function"}
    before = {n.name: n.meta["module"] for n in model.graph.nodes if n.op == "call_function"}
    assert {n: m for n, m in before.items() if "size" not in n}.items() <= names.items()
    assert parse(WISH.model_dump_json()) == WISH


def test_ids_survive_and_heads_can_be_cut() -> None:
    model = model_of(2)
    units = {name: axis.unit_ids for name, axis in model.anatomy.axes.items()}
    phages = list(model.anatomy.phages)
    lowered = apply(model, WISH)
    found = {name: axis.unit_ids for name, axis in lowered.anatomy.axes.items()}
    assert units.items() - found.items() == {("axis:v/head-size", (0, 1, 2, 3))}  # one size for all
    assert list(lowered.anatomy.phages) == phages
    groups, size = (
        next(n for n, a in lowered.anatomy.axes.items() if a.kind == kind and a.cuttable)
        for kind in ("kv-groups", "head-size")
    )
    cut = oracle.assert_exact_cut(lowered, {groups: [1]}, (X,), {})
    assert cut.nodes["linear"].args[3:] == (2, 1, SIZE)
    back = apply(cut, BACK)
    assert back.get_parameter("k.weight").shape == (SIZE, WIDTH)
    oracle.close(back(X), cut(X), "cut and back")
    assert oracle.assert_exact_cut(lowered, {size: [0]}, (X,), {}).nodes["linear"].args[5] == 3


def test_after_a_new_trace_plain_layers_come_back(tmp_path: Any) -> None:
    model = model_of(2)
    lowered = apply(model, WISH)
    esper.save(lowered, tmp_path / "m.esper")
    back = apply(esper.load(tmp_path / "m.esper"), BACK)
    assert sorted(back.state_dict()) == sorted(model.state_dict())
    again = esper.trace(lowered, (X,))
    (node,) = [n.name for n in again.graph.nodes if "attention_proj" in str(n.target)]
    plain = apply(again, RaiseKernel(node=node))
    oracle.close(plain(X), model(X), "plain")
    assert {"q.weight", "q.weight_k", "q.weight_v"} <= plain.state_dict().keys()


@pytest.mark.parametrize("form", ["other input", "read twice"])
def test_near_misses(form: str) -> None:
    assert refused(model_of(form=form), WISH).code == "no-projections"


def test_more_refusals() -> None:
    model = model_of()
    for node in ("linear_1", "linear_3", "transpose"):
        assert refused(model, LowerAttentionProjections(node=node)).code == "no-projections"
    small = apply(model, QuantizeLayers(nodes=("linear_2",)))
    assert refused(small, WISH).code == "no-projections"
    model.ecology.set("slot:mine", SlotLife(input="linear_1"))
    assert refused(model, WISH).code == "occupied-value"


class Viewed(Attention):
    """Values are also handed on as they were before heads came first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, sequence, width) to twice that width."""
        batch, length, _ = x.shape
        heads = [
            layer(x).view(batch, length, -1, SIZE).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(*heads)
        back = [each.transpose(1, 2) for each in (out, heads[2])]
        return torch.cat([back[0].flatten(2), back[1].view(batch, length, -1)], -1)


def test_what_is_viewed_with_other_strides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = traced(Viewed(), X)
    found = refused(model, WISH)
    assert (found.code, found.node) == ("viewed", "linear")
    # Nothing that a pass overlooks gets past the door: strides are followed as shapes are.
    monkeypatch.setattr(lower_attention, "_viewed", lambda values: None)
    _, record = model.apply(WISH)
    assert record.kind == "failure"
    assert "view" in record.reason


def test_both_ways_compute_the_same() -> None:
    for case in ({}, {"kv": 2, "bias": False}):
        model = model_of(**case)
        model.float()
        sizes = ExampleSizes(model, ((X.float(),), {}))
        agree_on_parts(attention_contest(model, model.nodes["linear"], sizes))
        assert attention_contest(model, model.nodes["linear_3"], sizes) is None


def agree_on_parts(contest: Contest | None) -> None:
    """Both ways give the same queries, keys and values."""
    assert contest is not None
    torch.manual_seed(3)
    ways = contest.ways(contest.input())
    present, kernel = (way.run() for way in ways)
    for one, other in zip(present, kernel, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_gradient_that_is_missing_is_zero() -> None:
    model = copy.deepcopy(model_of(bias=False))
    k = model.get_parameter("k.weight")
    k.grad = torch.ones_like(k)
    plan = model.plan(WISH)
    assert isinstance(plan, esper.plan.Plan)
    journal = Journal()
    Applier(model, journal).apply(plan)
    grad = model.get_parameter("q.weight").grad
    assert grad is not None
    assert [float(grad[i : i + WIDTH].sum()) for i in range(0, 3 * WIDTH, WIDTH)] == [
        0.0,
        float(k.numel()),
        0.0,
    ]
    journal.roll_back()
    same_state(model, model_of(bias=False))
    assert model.get_parameter("q.weight").grad is None
    assert model.get_parameter("k.weight").grad is not None
