"""The engine on zeros and kernels: what no kernel reads is taken back, and what does not pay."""

from __future__ import annotations

import copy

import pytest
import torch

from esper.ir.kernels import kernel
from esper.ir.model import Model
from esper.judge import Judgement
from esper.passbase import Context
from esper.pipeline import parse, units
from tests.engine_fakes import (
    LAYERS,
    NO,
    YES,
    FakeJudge,
    chain,
    engine,
    run,
)

SPARSE = "sparsify{pattern=8:1:2},lower-kernels{choose=all}"


def lowered(model: Model) -> set[str]:
    """Nodes that call a kernel."""
    return {node.name for node in model.graph.nodes if kernel(node.target) is not None}


def zeros(model: Model) -> set[str]:
    """Weights that hold zeros, as a dense model would have them."""
    return {name for name, p in model.named_parameters() if not p.detach().all()}


def test_a_weight_is_kept_sparse_only_where_a_kernel_pays() -> None:
    paying = {"linear_1", "linear_3"}

    def decide(baseline: Model, candidate: Model) -> Judgement:
        new = lowered(candidate) - lowered(baseline)
        return YES if new and new <= paying else NO

    made = engine(FakeJudge(decide), max_trials=100)
    for unit in units(parse(SPARSE)):
        made.run_unit(unit)
    assert lowered(made.model) == paying
    assert zeros(made.model) == set()
    shapes = {n: tuple(p.shape) for n, p in made.model.named_parameters() if p.ndim > 1}
    assert {n for n, shape in shapes.items() if shape == (8, 4)} == {
        "hidden.0.weight",
        "hidden.2.weight",
    }
    kept = [r.proposal.type for r in made.records if r.kind == "passed" and r.proposal]
    assert kept == ["set-mask", "fold-mask", "lower-linear"] * 2


def test_what_no_kernel_makes_use_of_is_refused_unjudged() -> None:
    judge = FakeJudge(lambda *_: YES)
    made = engine(judge)
    run(made, "sparsify{pattern=8:1:2},lower-kernels{only=nothing}", None)
    assert not judge.asked
    assert zeros(made.model) == set()
    refused = [r for r in made.records if r.proposal]
    assert {(r.kind, r.code) for r in refused} == {("missed", "no-kernel-for-it")}
    assert all(r.reason.endswith("no kernel makes use of it") and r.remedy for r in refused)


def test_zeros_stay_only_where_a_kernel_reads_them() -> None:
    judge = FakeJudge(lambda *_: YES)
    made = engine(judge)
    run(made, "sparsify{pattern=8:1:2},lower-kernels{choose=all only=hidden.1.*}", None)
    assert len(judge.asked) == 1
    assert lowered(made.model) == {"linear_2"}
    assert zeros(made.model) == set()  # what is packed holds none
    kept = [r.proposal.type for r in made.records if r.kind == "passed" and r.proposal]
    assert kept == ["set-mask", "fold-mask", "lower-linear"]


@pytest.mark.parametrize("saliency", ["taylor", "random"])
def test_scores_last_as_long_as_masks_may_be_set_again(saliency: str) -> None:
    made = engine(FakeJudge(lambda *_: YES))
    made.context = Context(data=[((torch.randn(16, 3),), {})])
    text = (
        f"sparsify{{pattern=8:1:2 saliency={saliency}}},lower-kernels{{choose=all only=hidden.1*}}"
    )
    run(made, text, None)
    assert lowered(made.model) == {"linear_2"}
    assert not made.model.payloads


def test_repair_between_zeros_and_kernels_runs_again_without_the_idle_ones() -> None:
    made = engine(FakeJudge(lambda *_: YES))
    made.context = Context(data=[((torch.randn(16, 3),), {})] * 2, baseline=chain())
    sparse = "sparsify{pattern=8:1:2 keep-masks=true},distil{steps=2},"
    run(made, sparse + "lower-kernels{choose=all only=hidden.1*}", None)
    assert lowered(made.model) == {"linear_2"}
    kept = [r.proposal.type for r in made.records if r.kind == "passed" and r.proposal]
    assert kept == ["set-mask", "distil", "lower-linear"]
    assert len([r for r in made.records if r.pass_name == "distil"]) == 1
    assert not {r.code for r in made.records if r.kind != "passed"} - {
        "pattern-size", "no-kernel-for-it",
    }  # fmt: skip


INTEGERS = "sparsify{pattern=8:1:2},quantize{least=1},lower-kernels{choose=all}"


def test_kernels_must_pay_beside_what_is_faster_by_itself() -> None:
    """Zeros and kernels are held against the integers without them, and then all of it."""
    asked: list[tuple[set[str], set[str]]] = []

    def decide(baseline: Model, candidate: Model) -> Judgement:
        asked.append((lowered(baseline), lowered(candidate)))
        return NO if lowered(candidate) else YES

    model = chain()
    made = engine(FakeJudge(decide), copy.deepcopy(model))
    run(made, INTEGERS, None)
    assert [(bool(a), bool(b)) for a, b in asked] == [(False, True), (False, False)]
    kept = {r.proposal.type for r in made.records if r.kind == "passed" and r.proposal}
    assert kept == {"quantize-layers"}
    missed = [r for r in made.records if r.kind == "missed" and r.proposal]
    assert {(r.pass_name, r.code) for r in missed} == {
        ("sparsify", "gate-reject"),
        ("lower-kernels", "gate-reject"),
    }
    plain = engine(FakeJudge(lambda *_: YES), model)
    run(plain, "quantize{least=1}", None)
    x = torch.randn(4, 3)
    assert torch.equal(made.model(x), plain.model(x))
    assert made.judgements[0][0].startswith("zeros and kernels of ")


def test_kernels_that_pay_stay_with_their_zeros() -> None:
    made = engine(FakeJudge(lambda *_: YES))
    records = run(made, INTEGERS, None)
    assert len(made.judgements) == 2
    assert len(made.accepted) == 1
    assert made.judgements[0][0].startswith("zeros and kernels of ")
    assert len(lowered(made.model)) == LAYERS - 1
    assert not [r for r in records if r.kind == "missed" and r.proposal]


def test_zeros_wait_for_kernels_and_integers_do_not() -> None:
    judge = FakeJudge(lambda *_: YES)
    made = engine(judge)
    run(made, "sparsify{pattern=8:1:2},quantize{least=1},lower-kernels{only=nothing}", None)
    kept = [r.proposal.type for r in made.records if r.kind == "passed" and r.proposal]
    assert set(kept) == {"quantize-layers"}
    integers = [t for name, t in made.model.all_tensors() if name.endswith("_int8")]
    assert len(integers) == len(kept)
    assert all((t == 0).float().mean() < 0.2 for t in integers)


def test_without_a_gate_zeros_stay() -> None:
    judge = FakeJudge(lambda *_: Judgement(True, "not-measured", "no gate"), gate=None)
    made = engine(judge)
    run(made, "sparsify{pattern=8:1:2},lower-kernels{only=nothing}", None)
    assert len(zeros(made.model)) == LAYERS - 1  # the pattern does not divide the first
