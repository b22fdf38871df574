"""Distillation goes through the door with the tensors it found, or is refused with its figures."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.passbase import Batch, Context
from esper.propose import Distil as Proposal
from esper.propose import LowRankSwap, PruneUnits, parse
from esper_passes.distil import Distil
from esper_passes.refit import digest
from tests.passes.support import drift, drive, refusal, refused, same_state, traced

F64 = torch.float64


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 12)),
        nn.BatchNorm1d(12),
        nn.Sequential(nn.ReLU(), nn.Linear(12, 4)),
    )


def batches(count: int = 8) -> list[Batch]:
    return [((torch.randn(24, 6, dtype=F64),), {}) for _ in range(count)]


@pytest.fixture(scope="module")
def traced_models() -> tuple[Model, Model]:
    torch.manual_seed(0)
    teacher = traced(net(), torch.randn(9, 6, dtype=F64))
    cut, record = teacher.apply(PruneUnits(axis="axis:0.0/neurons", units=(0, 3, 5, 6, 9, 12, 13)))
    assert record.kind == "passed"
    return teacher, cut


@pytest.fixture
def models(traced_models: tuple[Model, Model]) -> tuple[Model, Model]:
    """A model and what a cut left of it."""
    teacher, cut = traced_models
    return teacher, copy.deepcopy(cut)


def distance(a: Model, b: Model, data: list[Batch]) -> float:
    with torch.no_grad():
        pairs = [(a(*args), b(*args)) for args, _ in data]
    error = sum(float((x - y).square().sum()) for x, y in pairs)
    return math.sqrt(error / sum(float(x.square().sum()) for x, _ in pairs))


@pytest.mark.parametrize("features", [True, False])
def test_the_model_comes_closer_to_its_teacher(models: tuple[Model, Model], features: bool) -> None:
    teacher, cut = models
    data = batches()
    buffers = {n: b.clone() for n, b in cut.named_buffers()}
    found, (record,), _ = drive(
        Distil(steps=80, lr=1e-2, features=features), cut, Context(data=data, baseline=teacher)
    )
    assert record.kind == "passed", record.line()
    assert record.figures["drift_before"] == pytest.approx(distance(teacher, cut, data[-2:]))
    assert record.figures["drift_after"] == pytest.approx(distance(teacher, found, data[-2:]))
    assert record.figures["drift_after"] < 0.7 * record.figures["drift_before"]
    assert not found.payloads
    assert all(torch.equal(b, buffers[n]) for n, b in found.named_buffers())
    wish = record.proposal
    assert wish is not None
    assert parse(wish.model_dump_json()) == wish


def test_nothing_to_learn_is_refused_and_leaves_the_model(models: tuple[Model, Model]) -> None:
    teacher, _ = models
    same = copy.deepcopy(teacher)
    found, (record,), _ = drive(Distil(steps=5), same, Context(data=batches(3), baseline=teacher))
    assert (record.kind, record.code) == ("missed", "no-gain")
    assert "from 0 to 0" in record.reason
    same_state(found, teacher)


def test_only_some_tensors_move(models: tuple[Model, Model]) -> None:
    teacher, cut = models
    found, (record,), _ = drive(
        Distil(steps=10, lr=1e-2, only="2.*"), cut, Context(data=batches(4), baseline=teacher)
    )
    assert record.figures["tensors"] == 2
    moved = {n for n, p in found.named_parameters() if not torch.equal(p, cut.get_parameter(n))}
    assert moved == {"2.1.weight", "2.1.bias"}


def test_in_a_pipeline_the_original_is_the_teacher() -> None:
    model, data = traced(net(), torch.randn(9, 6, dtype=F64)), batches()
    result = esper.optimize(
        model,
        "low-rank{rank=2 only=0.3.*},distil{steps=60 lr=0.01}",
        data=data,
        max_loss=1.0,
    )
    kinds = {r.pass_name: r.kind for r in result.records}
    assert kinds == {"low-rank": "passed", "distil": "passed"}
    assert result.records[1].figures["drift_after"] < result.records[1].figures["drift_before"]


def test_remarks(models: tuple[Model, Model]) -> None:
    teacher, cut = models
    for context, options, code in (
        (Context(data=batches(3)), {}, "no-baseline"),
        (Context(data=batches(1), baseline=teacher), {}, "too-little-data"),
        (Context(data=batches(3), baseline=teacher), {"only": "none"}, "nothing-to-train"),
    ):
        _, records, remarks = drive(Distil(**options), cut, context)  # type: ignore[arg-type]
        assert (records, [r.code for r in remarks]) == ([], [code])


def test_refusals(models: tuple[Model, Model]) -> None:
    _, cut = models
    better: dict[str, Any] = {"drift_before": 0.5, "drift_after": 0.4}
    assert refused(cut, Proposal(digest="gone", **better)).code == "missing-payload"
    for payload, reason in (
        ({"2.1.bias": torch.zeros(9)}, "is (4,) now"),
        ({"nobody": torch.zeros(4)}, "is gone"),
    ):
        name = digest(payload)
        cut.payloads[name] = payload
        record = refusal(cut, Proposal(digest=name, **better))
        assert record.code == "stale-payload"
        assert reason in record.reason
    payload = {"2.1.bias": torch.zeros(4, dtype=F64)}
    name = digest(payload)
    cut.payloads[name] = payload
    worse = Proposal(digest=name, drift_before=0.5, drift_after=0.5)
    assert refusal(cut, worse).code == "no-gain"
    assert not isinstance(cut.plan(Proposal(digest=name, **better)), esper.plan.Refusal)
    payload["2.1.bias"] += 1
    assert refusal(cut, Proposal(digest=name, **better)).code == "changed-payload"


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": -1.0}, {"held_out": 0.0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", "-")):
        Distil(**options)


def test_factors_are_distilled_too(models: tuple[Model, Model]) -> None:
    teacher, _ = models
    split, record = teacher.apply(LowRankSwap(node="linear_1", rank=4))
    assert record.kind == "passed"
    data = batches()
    found, (record,), _ = drive(
        Distil(steps=80, lr=1e-2), split, Context(data=data, baseline=teacher)
    )
    assert record.kind == "passed", record.line()
    assert record.figures["drift_after"] < 0.8 * record.figures["drift_before"]
    assert drift(found, teacher, data[0][0]) > 0
