"""A rewrite that is wrong is caught by either level of verification, and undone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest

from esper import manager as managing
from esper.ir.model import Model
from esper.manager import PassManager, Verify
from esper.passbase import Rewrite, rewrites
from esper.plan import Plan, Refusal, SetArg, UnitCut
from esper.propose import PruneUnits
from esper.state import Select, StateTransform
from tests import zoo
from tests.ir.small import convolution_inputs, convolutions
from tests.snapshots import assert_same, snapshot

CHANNELS = "axis:conv/channels"


class ForgetsLiterals(Rewrite):
    """Cuts channels but leaves the size in the view as it was."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        plan = rewrites()["prune-units"].plan(model, proposal)
        assert isinstance(plan, Plan)
        return Plan(proposal, "wrong", (), plan.state, plan.cuts)


class ForgetsATensor(Rewrite):
    """Cuts the weight of a convolution and forgets the batch norm after it."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        plan = rewrites()["prune-units"].plan(model, proposal)
        assert isinstance(plan, Plan)
        ops = {name: op for name, op in plan.state.ops.items() if "norm" not in name}
        return Plan(proposal, "wrong", plan.edits, StateTransform(ops), plan.cuts)


class CutsOtherUnits(Rewrite):
    """Claims to cut more units than the tensors lose."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        plan = rewrites()["prune-units"].plan(model, proposal)
        assert isinstance(plan, Plan)
        return Plan(proposal, "wrong", plan.edits, plan.state, (UnitCut(proposal.axis, (0, 1)),))


class BreaksThePort(Rewrite):
    """Narrows an output of the model."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        ops = {"fc.weight": (Select(0, (0,)),), "fc.bias": (Select(0, (0,)),)}
        return Plan(proposal, "wrong", state=StateTransform(ops))


class NamesNothing(Rewrite):
    """Edits a node that does not exist."""

    type = "prune-units"

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        return Plan(proposal, "wrong", (SetArg("nowhere", (0,), 1),))


@pytest.mark.own_verification
@pytest.mark.parametrize("verification", ["incremental", "full"])
@pytest.mark.parametrize(
    "rewrite", [ForgetsLiterals, ForgetsATensor, CutsOtherUnits, BreaksThePort, NamesNothing]
)
def test_wrong_rewrites_are_caught_and_undone(
    rewrite: type[Rewrite], verification: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = convolutions()
    model(*convolution_inputs()).square().sum().backward()
    before = snapshot(model)
    monkeypatch.setattr(managing, "rewrites", lambda: {"prune-units": rewrite()})
    record = PassManager(model, verify=verification).apply(PruneUnits(axis=CHANNELS, units=(2,)))
    assert record.kind == "failure", record.line()
    assert_same(before, snapshot(model))


class Given(Rewrite):
    """Plans what it was given."""

    type = "prune-units"

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
        return self._plan


def _omissions(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan without one of its parts, for each part."""
    for i, edit in enumerate(plan.edits):
        yield edit.text(), replace(plan, edits=plan.edits[:i] + plan.edits[i + 1 :])
    for name in plan.state.ops:
        left = {other: op for other, op in plan.state.ops.items() if other != name}
        yield name, replace(plan, state=StateTransform(left))
    if not plan.edits:  # with edits the axes are analysed anew, and the plan is a sound one
        yield "the cut itself", replace(plan, cuts=())


@pytest.mark.own_verification
@pytest.mark.parametrize("name", ["bert", "llama", "resnet_basic", "unet"])
def test_no_part_of_a_cut_can_be_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, _, _ = zoo.traced(name)
    seen: set[str] = set()
    for axis in original.anatomy.axes.values():
        if not axis.cuttable or axis.kind in seen:
            continue
        seen.add(axis.kind)  # one axis of each kind
        proposal = PruneUnits(axis=axis.id, units=axis.unit_ids[:1])
        plan = PassManager(original).plan(proposal)
        assert isinstance(plan, Plan)
        for part, wrong in _omissions(plan):
            table = {"prune-units": Given(wrong)}
            monkeypatch.setattr(managing, "rewrites", lambda table=table: table)
            model = copy.deepcopy(original)
            record = PassManager(model).apply(proposal)
            assert record.kind == "failure", f"{axis.id} without {part}"
            monkeypatch.undo()
    assert seen
