"""Every contract rule fires, with its code, the place and a remedy, and lets the rest pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.contracts import RULES, check
from esper.ir import shapes
from esper.ir.model import Model
from esper.manager import PassManager
from esper.plan import Refusal
from esper.propose import DropRegion, EliminateDead, FuseConvBN, Proposal, PruneUnits, Refit
from tests.ir.small import convolutions, perceptron
from tests.snapshots import assert_same, snapshot

NEURONS = "axis:up/neurons"


@dataclass(frozen=True)
class Fires:
    """A proposal that one rule refuses; `reason` and `remedy` are parts of the sentences."""

    rule: str
    code: str
    proposal: Proposal
    node: str | None
    reason: str
    remedy: str


CASES = (
    Fires(
        "known_target",
        "unknown-target",
        PruneUnits(axis="axis:up/neuron", units=(0,)),
        "axis:up/neuron",
        "there is no axis axis:up/neuron",
        "did you mean axis:up/neurons?",
    ),
    Fires(
        "known_target",
        "unknown-target",
        PruneUnits(axis="Q", units=(0,)),
        "Q",
        "there is no axis Q",
        "esper inspect",
    ),
    Fires(
        "known_target",
        "unknown-target",
        DropRegion(region="phage:nowhere"),
        "phage:nowhere",
        "there is no region phage:nowhere",
        "",
    ),
    Fires(
        "known_target",
        "unknown-target",
        FuseConvBN(convolution="linear", batch_norm="batch_norm"),
        "batch_norm",
        "there is no node batch_norm",
        "",
    ),
    Fires(
        "known_target",
        "unknown-target",
        Refit(node="linear_9", digest="0"),
        "linear_9",
        "there is no node linear_9",
        "did you mean linear",
    ),
    Fires(
        "known_units",
        "unknown-unit",
        PruneUnits(axis=NEURONS, units=(3, 8)),
        NEURONS,
        "has no unit 8",
        "unit_ids",
    ),
    Fires(
        "known_units",
        "unknown-unit",
        PruneUnits(axis=NEURONS, units=(-1,)),
        NEURONS,
        "has no unit -1",
        "unit_ids",
    ),
    Fires(
        "known_units",
        "repeated-unit",
        PruneUnits(axis=NEURONS, units=(3, 3)),
        NEURONS,
        "named twice",
        "",
    ),
    Fires(
        "frozen_axis",
        "frozen-axis",
        PruneUnits(axis="axis:embed/vocabulary", units=(3,)),
        "embedding",
        "is frozen: rows are addressed by data (embedding) at %embedding",
        "choose another axis",
    ),
    Fires(
        "never_empty",
        "empty-axis",
        PruneUnits(axis=NEURONS, units=tuple(range(8))),
        NEURONS,
        "cutting all 8 units",
        "drop-region",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.proposal.type}")
def test_rule_fires(case: Fires) -> None:
    model = perceptron()
    before = snapshot(model)
    refusal = check(model, case.proposal)
    assert refusal == model.check(case.proposal) == model.plan(case.proposal)
    assert isinstance(refusal, Refusal)
    assert refusal.code == case.code
    assert refusal.node == case.node
    assert case.reason in refusal.reason
    assert case.remedy in refusal.remedy
    assert _first(model, case.proposal) == case.rule
    record = PassManager(model).apply(case.proposal)
    assert (record.kind, record.code, record.node) == ("missed", case.code, case.node)
    assert (record.reason, record.remedy) == (refusal.reason, refusal.remedy)
    assert_same(before, snapshot(model))


def _first(model: Model, proposal: Proposal) -> str:
    return next(rule.__name__ for rule in RULES if rule(model, proposal) is not None)


class NotBypassable(nn.Module):
    """A stage that changes the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.widen(x))
        return out


def test_region_that_changes_shape_may_not_be_dropped() -> None:
    model = esper.trace(NotBypassable().eval(), (torch.randn(3, 4),))
    (region,) = [p for p in model.anatomy.phages.values() if p.path == "widen"]
    refusal = model.check(DropRegion(region=region.id))
    assert refusal is not None
    assert (refusal.code, refusal.node) == ("not-bypassable", region.id)
    assert region.reason
    assert region.reason in refusal.reason
    assert refusal.remedy == "drop a region whose input and output agree in shape"
    assert _first(model, DropRegion(region=region.id)) == "bypassable_region"


class Routed(nn.Module):
    """The two experts of five that a router chose, for each item."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 5)
        self.experts = nn.Parameter(torch.randn(5, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).topk(2, dim=-1)[1]
        return (self.experts[chosen] @ x[:, None, :, None]).sum((1, 3))


def test_as_many_units_stay_as_are_selected() -> None:
    model = esper.trace(Routed().eval(), (torch.randn(3, 4),))
    (axis,) = [a for a in model.anatomy.axes.values() if a.kind == "experts"]
    assert axis.least == 2
    proposal = PruneUnits(axis=axis.id, units=(0, 1, 3, 4))
    refusal = model.check(proposal)
    assert refusal is not None
    assert (refusal.code, refusal.node) == ("too-few-units", axis.id)
    assert "would leave 1" in refusal.reason
    assert refusal.remedy == "keep at least 2 units"
    assert _first(model, proposal) == "enough_units"
    cut, record = model.apply(PruneUnits(axis=axis.id, units=(0, 1, 3)))
    assert record.kind == "passed"
    assert cut(torch.randn(3, 4)).shape == (3, 2)
    assert not cut.anatomy.axes[axis.id].cuttable


def test_frozen_axis_names_the_line_of_the_user() -> None:
    model = perceptron()
    refusal = model.check(PruneUnits(axis="axis:embed/vocabulary", units=(3,)))
    assert refusal is not None
    assert "small.py:" in refusal.reason
    assert "hidden = self.embed(ids)" in refusal.reason


def test_op_without_a_rule_is_named_in_the_remedy() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 5)
            self.outer = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.outer(torch.linalg.matrix_power(self.inner(x), 2))
            return out

    model = esper.trace(Odd().eval(), (torch.randn(2, 5, 3),))
    refusal = model.check(PruneUnits(axis="axis:inner/neurons", units=(1,)))
    assert refusal is not None
    assert refusal.code == "frozen-axis"
    assert "no axis rule for aten.linalg_matrix_power.default" in refusal.reason
    assert refusal.node == next(
        n.name for n in model.graph.nodes if "matrix_power" in str(n.target)
    )
    assert "register a rule for aten.linalg_matrix_power.default" in refusal.remedy


def test_part_that_was_removed_is_told_from_one_that_never_was() -> None:
    model = convolutions()
    (dead,) = _orphan(model)
    assert model.check(PruneUnits(axis=dead, units=(0,))) is None
    record = PassManager(model).apply(
        EliminateDead(nodes=("spare_weight",), tensors=("spare.weight",))
    )
    assert record.kind == "passed", record.line()
    refusal = model.check(PruneUnits(axis=dead, units=(0,)))
    assert refusal is not None
    assert refusal.code == "retired-target"
    assert "removed earlier" in refusal.reason
    assert refusal.node == dead


def _orphan(model: Model) -> list[str]:
    """Give the model a parameter that a node reads for nothing; returns the ID of its axis."""
    known = set(model.anatomy.axes)
    spare = nn.Module()
    spare.register_parameter("weight", nn.Parameter(torch.ones(3)))
    model.add_module("spare", spare)
    with model.graph.inserting_before(next(iter(model.graph.nodes))):
        read = model.graph.get_attr("spare.weight")
    read.meta = {"val": None, "module": "spare", "source": ""}
    model.invalidate()
    shapes.propagate(model, [read])
    model.recompile()
    return [name for name in model.anatomy.axes if name not in known]


@pytest.mark.parametrize(
    "proposal",
    [
        PruneUnits(axis=NEURONS, units=(0,)),
        PruneUnits(axis=NEURONS, units=tuple(range(7))),
        DropRegion(region="phage:up"),
        EliminateDead(),
    ],
)
def test_admissible_proposals_pass(proposal: Any) -> None:
    model = perceptron()
    if isinstance(proposal, DropRegion):
        bypassable = [p.id for p in model.anatomy.phages.values() if p.bypassable]
        assert bypassable
        proposal = DropRegion(region=bypassable[0])
    assert check(model, proposal) is None


def test_units_keep_their_numbers_after_a_cut() -> None:
    model = perceptron()
    PassManager(model).apply(PruneUnits(axis=NEURONS, units=(3,)))
    refusal = model.check(PruneUnits(axis=NEURONS, units=(3,)))
    assert refusal is not None
    assert refusal.code == "unknown-unit"
    assert model.check(PruneUnits(axis=NEURONS, units=(7,))) is None
