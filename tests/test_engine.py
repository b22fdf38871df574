"""The engine with a judge that is told what pays: keep, refuse, bisect, search, undo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import esper
from esper.engine import Engine, with_ratio
from esper.errors import UsageError
from esper.ir.model import Model
from esper.judge import Judgement
from esper.pipeline import Item, Pipeline, parse, units
from esper.records import Record
from tests.engine_fakes import (
    AXES,
    NO,
    TABLE,
    WIDTH,
    YES,
    CutShare,
    FakeJudge,
    Mend,
    Silent,
    chain,
    cut_axes,
    engine,
    kinds,
    pays,
    run,
)
from tests.snapshots import assert_same, snapshot

# -- units ---------------------------------------------------------------------------------------


def test_accepted_unit_is_kept_whole() -> None:
    judge = FakeJudge(pays({0, 1, 2, 3}))
    made = engine(judge)
    records = run(made, "cut-one")
    assert judge.asked == [(set(), {0, 1, 2, 3}, ("eager", "eager"), True)]
    assert kinds(records) == {"passed": [0, 1, 2, 3]}
    assert {r.code for r in records} == {"accepted"}
    assert all(r.pass_name == "cut-one" for r in records)
    assert all(r.figures["speedup"] == 1.2 and r.figures["units"] == 1 for r in records)
    assert len(made.model.history) == 4


def test_refused_unit_leaves_the_model_bit_for_bit() -> None:
    model = chain()
    before = snapshot(model)
    made = engine(FakeJudge(pays(set())), model)
    records = run(made, "cut-one")
    assert_same(before, snapshot(made.model))
    assert kinds(records) == {"missed": [0, 1, 2, 3]}
    assert {r.code for r in records} == {"gate-reject"}
    assert all(r.remedy and r.figures["speedup"] == 0.99 for r in records)


@pytest.mark.parametrize("paying", [{0, 1}, {2}, {1, 3}, {0, 2, 3}])
def test_bisection_finds_the_proposals_that_pay(paying: set[int]) -> None:
    made = engine(FakeJudge(pays(paying)), max_trials=100)
    records = run(made, "cut-one")
    assert cut_axes(made.model) == paying
    found = kinds(records)
    assert sorted(found["passed"]) == sorted(paying)
    assert sorted(found["missed"]) == sorted(set(range(4)) - paying)
    assert [e["axis"] for e in made.model.history] == [AXES[i] for i in sorted(paying)]


def test_what_was_found_but_not_confirmed_in_time_is_not_halved() -> None:
    short = Judgement(False, "gate-unconfirmed", "3.2x, not confirmed", {"seconds_needed": 150.0})
    judge = FakeJudge(lambda *_: short)
    made = engine(judge)
    records = run(made, "cut-one")
    assert len(judge.asked) == 1
    assert kinds(records) == {"missed": [0, 1, 2, 3]}
    assert {(r.code, r.reason) for r in records} == {(short.code, short.reason)}
    assert {r.remedy for r in records} == {"give --budget-seconds 150"}
    assert not cut_axes(made.model)


def test_bisection_measures_against_what_was_committed() -> None:
    judge = FakeJudge(pays({0, 1}))
    made = engine(judge, max_trials=100)
    run(made, "cut-one")
    assert [(before, after) for before, after, _, _ in judge.asked] == [
        (set(), {0, 1, 2, 3}),
        (set(), {0, 1}),
        ({0, 1}, {0, 1, 2, 3}),
        ({0, 1}, {0, 1, 2}),
        ({0, 1}, {0, 1, 3}),
    ]


def test_bisection_stops_when_trials_are_spent() -> None:
    judge = FakeJudge(pays({3}))
    made = engine(judge, max_trials=2)
    records = run(made, "cut-one")
    assert len(judge.asked) == 2
    assert cut_axes(made.model) == set()
    assert sorted(kinds(records)["missed"]) == [0, 1, 2, 3]


def test_each_unit_has_its_own_trials_and_its_own_fate() -> None:
    judge = FakeJudge(lambda a, b: YES if b.anatomy.axes[AXES[0]].size == 7 else NO)
    made = engine(judge, max_trials=1)
    records = run(made, "cut-one,cut-one{unit=1}")
    assert len(judge.asked) == 2
    assert kinds(records) == {"passed": [0, 1, 2, 3], "missed": [0, 1, 2, 3]}
    assert made.model.anatomy.axes[AXES[2]].unit_ids == tuple(range(1, 8))


def test_repair_runs_again_with_every_half() -> None:
    Mend.runs.clear()
    made = engine(FakeJudge(pays({0, 1})), max_trials=3)
    records = run(made, "cut-one,mend")
    assert Mend.runs == [4, 2, 4]
    assert [r.code for r in records if r.pass_name == "mend"].count("mended") >= 1
    assert cut_axes(made.model) == {0, 1}


def test_a_pass_without_proposals_says_so_and_is_not_judged() -> None:
    judge = FakeJudge(pays(set()))
    (record,) = run(engine(judge), "silent")
    assert (record.kind, record.code, record.pass_name) == ("missed", "no-proposal", "silent")
    assert judge.asked == []


def test_an_error_in_a_pass_rolls_the_unit_back_and_passes_on() -> None:
    model = chain()
    before = snapshot(model)
    made = engine(FakeJudge(pays({1})), model)
    with pytest.raises(UsageError, match="breaks needs something"):
        run(made, "breaks")
    assert_same(before, snapshot(model))


def test_an_interrupt_while_judging_rolls_the_unit_back() -> None:
    def interrupted(baseline: Model, candidate: Model) -> Judgement:
        raise KeyboardInterrupt

    model = chain()
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        run(engine(FakeJudge(interrupted), model), "cut-one")
    assert_same(before, snapshot(model))


def test_without_a_gate_everything_is_applied() -> None:
    judge = FakeJudge(lambda a, b: Judgement(True, "not-measured", "no gate"), gate=None)
    made = engine(judge)
    records = run(made, "cut-one")
    assert cut_axes(made.model) == {0, 1, 2, 3}
    assert {r.code for r in records} == {"not-measured"}


# -- quality and finetuning ----------------------------------------------------------------------


def test_quality_refusal_is_bisected_like_the_gate() -> None:
    poor = Judgement(False, "quality", "0.90 is below 0.95", {"quality_after": 0.9})
    made = engine(FakeJudge(lambda a, b: poor if cut_axes(b) & {2} else YES), max_trials=100)
    records = run(made, "cut-one")
    assert cut_axes(made.model) == {0, 1, 3}
    (missed,) = [r for r in records if r.kind == "missed"]
    assert missed.code == "quality"
    assert "max-loss" in missed.remedy
    assert missed.figures["quality_after"] == 0.9


def test_a_failed_measurement_is_not_bisected() -> None:
    judge = FakeJudge(lambda a, b: Judgement(False, "gate-failed", "a worker died"))
    made = engine(judge, max_trials=100)
    records = run(made, "cut-one")
    assert len(judge.asked) == 1
    assert cut_axes(made.model) == set()
    assert {r.code for r in records} == {"gate-failed"}


def shift(model: Model) -> None:
    """A finetuning that changes every weight and leaves the model in training mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()  # and leaves gradients behind


def test_finetuning_is_undone_with_a_refusal() -> None:
    model = chain()
    before = snapshot(model)
    calls: list[int] = []

    def finetune(candidate: Model) -> None:
        calls.append(len(cut_axes(candidate)))
        shift(candidate)

    made = engine(FakeJudge(pays(set())), model, finetune=finetune, max_trials=100)
    run(made, "cut-one")
    assert calls[0] == 4
    assert_same(before, snapshot(model))
    assert not made.finetuned


def test_finetuning_is_kept_with_an_accepted_unit() -> None:
    model = chain()
    head = model.tensor("head.weight").detach().clone()  # type: ignore[union-attr]
    made = engine(FakeJudge(pays({0, 1, 2, 3})), model, finetune=shift)
    run(made, "cut-one")
    assert not torch.equal(made.model.tensor("head.weight"), head)  # type: ignore[arg-type]
    assert not made.model.training
    assert made.finetuned


def test_finetuning_that_fails_rolls_back() -> None:
    def fails(model: Model) -> None:
        shift(model)
        raise RuntimeError("out of data")

    model = chain()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="out of data"):
        run(engine(FakeJudge(pays({0})), model, finetune=fails), "cut-one")
    assert_same(before, snapshot(model))


def test_changes_that_preserve_the_function_are_neither_lossy_nor_finetuned() -> None:
    calls: list[Model] = []
    judge = FakeJudge(lambda a, b: YES)
    made = engine(judge, finetune=calls.append)
    run(made, "choose")
    assert judge.asked[0][3] is False
    assert calls == []
    assert not made.finetuned


# -- backends ------------------------------------------------------------------------------------


def test_accepted_backend_is_that_of_the_next_baseline() -> None:
    judge = FakeJudge(lambda a, b: YES)
    made = engine(judge)
    run(made, "choose,cut-one")
    assert [backends for _, _, backends, _ in judge.asked] == [
        ("eager", "inductor"),
        ("inductor", "inductor"),
    ]
    assert made.manager.backend == made.context.backend == "inductor"


def test_refused_backend_is_taken_back() -> None:
    judge = FakeJudge(lambda a, b: NO)
    made = engine(judge)
    run(made, "choose,cut-one")
    assert judge.asked[0][2] == ("eager", "inductor")
    assert all(backends == ("eager", "eager") for _, _, backends, _ in judge.asked[1:])
    assert made.manager.backend == made.context.backend == "eager"


# -- search --------------------------------------------------------------------------------------


def search(judge: FakeJudge, steps: int, **options: Any) -> tuple[Engine, list[Record]]:
    made = engine(judge, **options)
    table = {**TABLE, "search": esper.passbase.passes()["search"]}
    for unit in units(parse(f"search{{steps={steps}}}(cut-share)", table)):
        made.run_unit(unit)
    return made, made.records


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_search_finds_the_largest_admissible_cut(limit: int) -> None:
    def quality(model: Model) -> Judgement:
        cut = WIDTH - model.anatomy.axes[AXES[0]].size
        code = "within-budget" if cut <= limit else "quality"
        return Judgement(cut <= limit, code, "", {"quality_after": 1 - cut / 10})

    made, records = search(FakeJudge(lambda a, b: YES, quality), steps=8)
    assert WIDTH - made.model.anatomy.axes[AXES[0]].size == limit
    (remark,) = [r for r in records if r.code == "search"]
    assert remark.kind == "analysis"
    assert len(remark.figures["tried"]) == 8
    assert len(made.model.history) == 1


def test_search_tries_nothing_that_is_known_to_be_harmless() -> None:
    judge = FakeJudge(lambda a, b: YES, lambda m: Judgement(False, "quality", "too poor"))
    made = engine(judge)
    table = {**TABLE, "search": esper.passbase.passes()["search"]}
    for unit in units(parse("search{steps=4 low=0.5 high=0.9}(cut-share)", table)):
        made.run_unit(unit)
    (remark,) = made.records
    ratios = [float(text) for text in remark.figures["tried"]]
    assert len(ratios) == 4
    assert all(0.5 < ratio < 0.9 for ratio in ratios)


def test_search_that_finds_nothing_leaves_the_model() -> None:
    model = chain()
    before = snapshot(model)
    poor = Judgement(False, "quality", "too poor")
    judge = FakeJudge(lambda a, b: YES, lambda m: poor)
    made, records = search(judge, steps=3, model=model)
    assert_same(before, snapshot(made.model))
    (remark,) = records
    assert (remark.kind, remark.code) == ("missed", "search")
    assert judge.asked == []


def test_search_does_not_take_a_ratio_that_cuts_nothing_for_a_find() -> None:
    poor = Judgement(False, "quality", "too poor")
    cuts_something = []

    def quality(model: Model) -> Judgement:
        cuts_something.append(model.anatomy.axes[AXES[0]].size < WIDTH)
        return poor if cuts_something[-1] else Judgement(True, "within-budget", "")

    # Low ratios round to no unit at all.
    made, records = search(FakeJudge(lambda a, b: YES, quality), steps=8)
    (remark,) = records
    assert remark.kind == "missed"
    assert "none of 8 ratios cut anything within the quality budget" in remark.reason
    assert "nothing to cut" in remark.figures["tried"].values()
    assert len(made.model.history) == 0


def test_search_stops_at_the_smallest_cut_that_is_fast_enough() -> None:
    def decide(baseline: Model, candidate: Model) -> Judgement:
        cut = WIDTH - candidate.anatomy.axes[AXES[0]].size
        return Judgement(True, "accepted", "", {"speedup": 1 + cut / 10})

    judge = FakeJudge(decide, lambda m: Judgement(True, "within-budget", ""))
    made, _ = search(judge, steps=8, target_speedup=1.3)
    assert WIDTH - made.model.anatomy.axes[AXES[0]].size == 3


def test_search_without_a_quality_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="search needs a quality budget"):
        search(FakeJudge(lambda a, b: YES), steps=2)


def test_ratio_is_replaced_at_every_depth() -> None:
    inner = Pipeline((Item(CutShare(ratio=0.5)), Item(Silent())))
    repeat = esper.passbase.passes()["repeat"]
    pipeline = Pipeline((Item(repeat(), inner),))
    changed = with_ratio(pipeline, 0.25)
    assert changed.items[0].inner == Pipeline((Item(CutShare(ratio=0.25)), Item(Silent())))
