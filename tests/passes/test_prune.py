"""The prune pass: which axes, how many units, which ones, and that a second run cuts no more."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.errors import UsageError
from esper.ir.model import Model
from esper.passbase import Context, passes
from esper.pipeline import parse
from esper.propose import PruneUnits
from esper_passes import alignment
from esper_passes.cost import unit_costs
from esper_passes.prune import Prune
from tests import oracle, zoo
from tests.passes.support import drive
from tests.zoo.catalogue import ENTRIES


class Toy(nn.Module):
    """Two hidden axes of different width, and a normalised one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 32)
        self.narrow = nn.Linear(32, 12)
        self.norm = nn.LayerNorm(12)
        self.second = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.narrow(torch.relu(self.wide(x))))
        out: Tensor = self.head(torch.relu(self.second(h)))
        return out


WIDE, NORMED, SECOND = "axis:wide/neurons", "axis:narrow/embedding", "axis:second/neurons"


@cache
def _toy() -> Model:
    torch.manual_seed(3)
    return esper.trace(Toy().double().eval(), (torch.randn(5, 4, dtype=torch.float64),))


def toy() -> Model:
    return copy.deepcopy(_toy())


def data(batches: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        ((torch.randn(6, 4, dtype=torch.float64, generator=generator),), {}) for _ in range(batches)
    ]


def context() -> Context:
    return Context(data=data())


def sizes(model: Model) -> dict[str, int]:
    return {name: axis.size for name, axis in model.anatomy.axes.items() if axis.cuttable}


def test_it_is_installed() -> None:
    assert passes()["prune"] is Prune
    assert parse("prune{ratio=0.5 saliency=random align=8}").text() == (
        "prune{ratio=0.5 saliency=random align=8}"
    )


# -- which axes ----------------------------------------------------------------------------------


def test_any_cuts_whole_units_of_computation_and_not_the_normalised_axis() -> None:
    changed, records, remarks = drive(Prune(ratio=0.25, align=1), toy())
    assert sizes(changed) == {WIDE: 24, NORMED: 12, SECOND: 6}
    assert [r.kind for r in records] == ["passed", "passed"]
    assert remarks == []
    assert all(r.figures["tolerance"] == "exact" for r in records)


def test_a_kind_that_is_named_is_cut_even_if_that_is_lossy() -> None:
    changed, (record,), _ = drive(Prune(axes="embedding", ratio=0.25, align=1), toy())
    assert sizes(changed) == {WIDE: 32, NORMED: 9, SECOND: 8}
    assert record.figures["tolerance"] == "lossy"


@pytest.mark.parametrize(
    ("axes", "cut"),
    [
        ("axis:wide/*", {WIDE}),
        ("*/neurons", {WIDE, SECOND}),
        ("neurons", {WIDE, SECOND}),
        ("axis:*", {WIDE, NORMED, SECOND}),
    ],
)
def test_kinds_and_globs(axes: str, cut: set[str]) -> None:
    _, records, _ = drive(Prune(axes=axes, align=1), toy())
    assert {r.proposal.axis for r in records if isinstance(r.proposal, PruneUnits)} == cut


@pytest.mark.parametrize("axes", ["heads", "axis:nowhere", "axis:head/neurons"])
def test_no_axis_is_a_missed_remark(axes: str) -> None:
    _, records, (remark,) = drive(Prune(axes=axes), toy())
    assert records == []
    assert (remark.kind, remark.code) == ("missed", "no-axis")
    assert axes in remark.reason
    assert remark.remedy


def test_an_op_without_a_rule_is_named_with_its_line_and_a_remedy() -> None:
    module, args, kwargs = ENTRIES["custom_op_without_a_rule"].build(torch.float64)
    model = esper.trace(module, args, kwargs)
    _, _, remarks = drive(Prune(axes="any", align=1), model)
    (remark,) = [r for r in remarks if r.code == "no-axis-rule"]
    stopped = [a for a in model.anatomy.axes.values() if a.frozen_node == remark.node]
    assert stopped
    assert remark.figures["axes"] == len(stopped)
    assert stopped[0].id in remark.reason
    assert f"%{remark.node} (" in remark.reason
    assert "custom.py:" in remark.reason
    assert "esper.register_axis_rule" in remark.remedy
    assert not any(r.code == "no-axis-rule" for r in drive(Prune(), toy())[2])


def test_heads_are_cut_and_their_size_is_not() -> None:
    model, _, _ = zoo.traced("bert")
    _, records, _ = drive(Prune(axes="any", ratio=0.5, align=1), model)
    kinds = {
        model.anatomy.axes[r.proposal.axis].kind
        for r in records
        if isinstance(r.proposal, PruneUnits)
    }
    assert kinds == {"heads", "neurons"}


# -- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("align", "wide", "second"), [(1, 20, 5), (4, 20, 8), (8, 24, 8), (16, 32, 8)]
)
def test_alignment_rounds_up_and_never_beyond_the_axis(align: int, wide: int, second: int) -> None:
    changed, _, remarks = drive(Prune(ratio=0.39, align=align), toy())
    assert sizes(changed) == {WIDE: wide, NORMED: 12, SECOND: second}
    assert {r.node for r in remarks if r.code == "nothing-to-cut"} == {
        name
        for name, size in ((WIDE, wide), (SECOND, second))
        if size in (32, 8) and size == {WIDE: 32, SECOND: 8}[name]
    }


def test_measured_alignment_keeps_the_size_that_times_best(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def measure(model: Model, axis: Any, nodes: Any, tried: list[int]) -> dict[int, float]:
        seen.append(tried)
        return {size: 1.0 if size == 24 else 2.0 + size / 1000 for size in tried}

    monkeypatch.setattr(alignment, "_measure", measure)
    monkeypatch.setattr(alignment, "_CACHE", {})
    changed, _, remarks = drive(Prune(axes=WIDE, ratio=0.39), toy())
    assert seen == [[20, 24, 32]]
    assert sizes(changed)[WIDE] == 24
    (remark,) = remarks
    assert remark.code == "alignment"
    assert remark.figures["wanted"] == 20
    assert remark.figures["units"] == 24
    assert set(remark.figures["milliseconds"]) == {"20", "24", "32"}


def test_a_larger_size_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_CACHE", {})
    monkeypatch.setattr(
        alignment, "_measure", lambda m, a, n, tried: {s: 1.0 - s / 10000 for s in tried}
    )
    changed, _, _ = drive(Prune(axes=WIDE, ratio=0.39), toy())
    assert sizes(changed)[WIDE] == 20


def test_measured_alignment_measures_each_size_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_CACHE", {})
    model = toy()
    axis = model.anatomy.axes[WIDE]
    first, second = (alignment.best_size(model, axis, 20) for _ in range(2))
    assert first == second
    assert len(alignment._CACHE) == 1
    (times,) = alignment._CACHE.values()
    assert set(times) == {20, 24, 32}
    assert all(milliseconds > 0 for milliseconds in times.values())


def test_running_twice_cuts_the_ratio_of_what_is_left() -> None:
    pass_ = Prune(axes=WIDE, ratio=0.5, align=1)
    once, _, _ = drive(pass_, toy())
    twice, _, _ = drive(pass_, once)
    assert (sizes(once)[WIDE], sizes(twice)[WIDE]) == (16, 8)
    assert set(twice.anatomy.axes[WIDE].unit_ids) < set(once.anatomy.axes[WIDE].unit_ids)


def test_it_comes_to_rest_where_nothing_is_left_to_cut() -> None:
    model = toy()
    for _ in range(20):
        model, records, remarks = drive(Prune(axes="neurons", ratio=0.3, align=1), model)
        if not records:
            break
    assert records == []
    assert {r.code for r in remarks} == {"nothing-to-cut"}
    again, records, _ = drive(Prune(axes="neurons", ratio=0.3, align=1), model)
    assert records == []
    assert str(again) == str(model)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_global_scope_cuts_the_ratio_of_the_work(ratio: float) -> None:
    model = toy()
    axes = [model.anatomy.axes[name] for name in (WIDE, SECOND)]
    costs = unit_costs(model, axes)
    whole = sum(costs[a.id] * a.size for a in axes)
    pass_ = Prune(ratio=ratio, align=1, scope="global", min_keep=0.0)
    changed, _, _ = drive(pass_, model)
    cut = sum(costs[a.id] * (a.size - changed.anatomy.axes[a.id].size) for a in axes)
    # The budget is spent, and overspent by less than the dearest unit.
    assert ratio * whole <= cut < ratio * whole + max(costs.values())


def test_global_scope_leaves_every_axis_its_floor() -> None:
    changed, _, _ = drive(Prune(ratio=0.95, align=1, scope="global", min_keep=0.5), toy())
    assert sizes(changed) == {WIDE: 16, NORMED: 12, SECOND: 4}


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.0}, {"ratio": 1.0}, {"min_keep": 1.5}, {"align": 0}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Prune(**options)


# -- which units and what the record says ----------------------------------------------------------


def test_the_least_salient_units_go() -> None:
    model = toy()
    with torch.no_grad():
        for name, dim in (("wide.weight", 0), ("wide.bias", 0), ("narrow.weight", 1)):
            tensor = model.tensor(name)
            assert tensor is not None
            for unit in (5, 11, 30):
                tensor.select(dim, unit).mul_(1e-3)
    _, (record,), _ = drive(Prune(axes=WIDE, ratio=0.1, align=1), model)
    assert isinstance(record.proposal, PruneUnits)
    assert record.proposal.units == (5, 11, 30)
    assert record.proposal.proposer == "prune"
    assert record.proposal.evidence["saliency"] == "magnitude"
    assert 0 < float(record.proposal.evidence["share_of_saliency_cut"]) < 0.01


def test_units_are_named_by_birth_number() -> None:
    model, _, _ = drive(Prune(axes=WIDE, ratio=0.5, align=1), toy())
    before = model.anatomy.axes[WIDE].unit_ids
    _, (record,), _ = drive(Prune(axes=WIDE, ratio=0.5, align=1), model)
    assert isinstance(record.proposal, PruneUnits)
    assert set(record.proposal.units) < set(before)


@pytest.mark.parametrize("saliency", ["activation", "taylor"])
def test_saliency_that_needs_data_says_so(saliency: Any) -> None:
    with pytest.raises(UsageError, match=rf"{saliency}|prune.* needs calibration data"):
        drive(Prune(saliency=saliency, align=1), toy())
    _, records, _ = drive(Prune(saliency=saliency, align=1), toy(), context())
    assert [r.kind for r in records] == ["passed", "passed"]


@pytest.mark.parametrize("saliency", ["magnitude", "activation", "taylor", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_choice_of_units_is_an_exact_cut_and_repeats(saliency: Any, scope: Any) -> None:
    pass_ = Prune(ratio=0.3, saliency=saliency, scope=scope, align=1, fold_constants=False)
    results = [drive(pass_, toy(), context()) for _ in range(2)]
    (one, records, _), (two, _, _) = results
    assert str(one) == str(two)
    removed = {
        r.proposal.axis: r.proposal.units for r in records if isinstance(r.proposal, PruneUnits)
    }
    args, kwargs = data(1)[0]
    oracle.assert_exact_cut(toy(), removed, args, kwargs)
