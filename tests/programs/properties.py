"""What holds for every program: cuts are exact, alone, jointly and in any order; plans are kept."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence

import torch

from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.manager import PassManager
from esper.plan import Plan
from esper.propose import PruneUnits
from tests import oracle, zoo
from tests.programs.program import Program, build

ALONE = 3  # axes that are cut one by one


def check(program: Program) -> int:
    """Every property; the number of axes that could be cut."""
    model, inputs = build(program)
    verify(model)
    axes = zoo.cuttable(model)
    chosen = random.Random(repr(program)).sample(sorted(axes), min(ALONE, len(axes)))
    for name in chosen:
        cut = oracle.assert_exact_cut(model, {name: zoo.some_units(axes[name])}, inputs, {})
        survivors_keep_their_ids(model, cut)
    removed = zoo.joint_cut(list(axes.values()))
    if removed:
        cut = oracle.assert_exact_cut(model, removed, inputs, {})
        survivors_keep_their_ids(model, cut)
        cuts_commute(model, removed)
        a_dry_run_tells_what_apply_does(model, chosen[0], removed[chosen[0]])
    return len(axes)


def survivors_keep_their_ids(model: Model, cut: Model) -> None:
    """Axes have the IDs that they had, and units too."""
    before, after = model.anatomy.axes, cut.anatomy.axes
    assert set(after) == set(before)
    for name, axis in after.items():
        assert len(set(axis.unit_ids)) == axis.size
        assert set(axis.unit_ids) <= set(before[name].unit_ids)


def cuts_commute(model: Model, removed: Mapping[str, Sequence[int]]) -> None:
    """Proposals about different axes give the same model in either order."""
    forth = oracle.cut_all(model, removed, "none")
    back = oracle.cut_all(model, dict(reversed([*removed.items()])), "none")
    assert str(forth) == str(back)
    for (name, a), (_, b) in zip(forth.all_tensors(), back.all_tensors(), strict=True):
        assert torch.equal(a, b), name


def a_dry_run_tells_what_apply_does(model: Model, name: str, units: Sequence[int]) -> None:
    """Planning changes nothing, and the plan is the one that is applied."""
    text = str(model)
    proposal = PruneUnits(axis=name, units=tuple(units))
    plan = model.plan(proposal)
    assert isinstance(plan, Plan)
    assert str(model) == text
    record = PassManager(copy.deepcopy(model)).apply(proposal)
    assert record.plan_digest == plan.digest
