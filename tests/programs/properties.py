"""What holds for every program.

Cuts are exact, alone or jointly, in any order, and can be undone; plans are kept; files give models
back; passes find nothing to do a second time.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import esper
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.manager import PassManager
from esper.plan import Plan
from esper.propose import PruneUnits
from esper_passes.eliminate_dead import EliminateDead
from esper_passes.fold_constants import FoldConstants
from tests import oracle, zoo
from tests.passes.support import drive
from tests.programs.program import Program, build

ALONE = 0.3  # share of programs in which one axis is cut, not all
Removed = Mapping[str, Sequence[int]]


def check(program: Program) -> int:
    """Every property; the number of axes that could be cut."""
    model, inputs = build(program)
    verify(model)
    chance = random.Random(repr(program))
    axes = zoo.cuttable(model)
    removed = zoo.joint_cut(list(axes.values()))
    if removed and chance.random() < ALONE:
        one = chance.choice(sorted(removed))
        removed = {one: removed[one]}
    if removed:
        cut = oracle.assert_exact_cut(model, removed, inputs, {})
        survivors_keep_their_ids(model, cut)
        chance.choice(OF_CUTS)(model, removed)
    chance.choice(OF_MODELS)(model, inputs)
    return len(axes)


def survivors_keep_their_ids(model: Model, cut: Model) -> None:
    """Axes have the IDs that they had, and units too."""
    before, after = model.anatomy.axes, cut.anatomy.axes
    assert set(after) == set(before)
    for name, axis in after.items():
        assert len(set(axis.unit_ids)) == axis.size
        assert set(axis.unit_ids) <= set(before[name].unit_ids)


def cuts_commute(model: Model, removed: Removed) -> None:
    """Proposals about different axes give the same model in either order."""
    forth = oracle.cut_all(model, removed, "none")
    back = oracle.cut_all(model, dict(reversed([*removed.items()])), "none")
    assert str(forth) == str(back)
    for (name, a), (_, b) in zip(forth.all_tensors(), back.all_tensors(), strict=True):
        assert torch.equal(a, b), name


def a_dry_run_tells_what_apply_does(model: Model, removed: Removed) -> None:
    """Planning changes nothing, and the plan is the one that is applied."""
    text = str(model)
    name, units = next(iter(removed.items()))
    proposal = PruneUnits(axis=name, units=tuple(units))
    plan = model.plan(proposal)
    assert isinstance(plan, Plan)
    assert str(model) == text
    record = PassManager(copy.deepcopy(model)).apply(proposal)
    assert record.plan_digest == plan.digest


def a_rollback_restores_every_bit(model: Model, removed: Removed) -> None:
    """Text, tensors (the same objects) and history are what they were."""
    text, tensors = str(model), dict(model.all_tensors())
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    manager = PassManager(model)
    with manager.transaction() as transaction:
        for name, units in removed.items():
            assert manager.apply(PruneUnits(axis=name, units=tuple(units))).kind == "passed"
        assert str(model) != text
        transaction.roll_back()
    assert str(model) == text
    for name, tensor in model.all_tensors():
        assert tensor is tensors[name], name
        assert torch.equal(tensor, values[name]), name
    verify(model)


def history_tells_every_cut(model: Model, removed: Removed) -> None:
    """One more proposal is one more entry, and what it says gives the same model again."""
    proposals = [PruneUnits(axis=name, units=tuple(units)) for name, units in removed.items()]
    manager = PassManager(copy.deepcopy(model), verify="none")
    for count, proposal in enumerate(proposals, 1):
        manager.apply(proposal)
        assert len(manager.model.history) == len(model.history) + count
    again = PassManager(copy.deepcopy(model), verify="none")
    for entry in manager.model.history[len(model.history) :]:
        again.apply(esper.propose.parse(entry))
    assert str(again.model) == str(manager.model)


def a_file_gives_the_model_back(model: Model, inputs: tuple[torch.Tensor, ...]) -> None:
    """The same graph and IDs, and the same outputs to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.esper"
        esper.save(model, path)
        loaded = esper.load(path)
    assert graphs_equal(model, loaded) is None
    assert list(loaded.anatomy.axes) == list(model.anatomy.axes)
    found, expected = oracle.run(loaded, inputs, {}), oracle.run(model, inputs, {})
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def passes_are_idempotent(model: Model, inputs: tuple[torch.Tensor, ...]) -> None:
    """Outputs stay, and there is nothing to do a second time."""
    for pass_ in (FoldConstants(), EliminateDead()):
        changed, _, _ = drive(pass_, model)
        for mine, theirs in zip(
            oracle.run(changed, inputs, {}), oracle.run(model, inputs, {}), strict=True
        ):
            oracle.close(mine, theirs, pass_.name)
        assert drive(pass_, changed)[1] == []
        model = changed


OF_CUTS: tuple[Callable[[Model, Removed], None], ...] = (
    cuts_commute,
    a_dry_run_tells_what_apply_does,
    a_rollback_restores_every_bit,
    history_tells_every_cut,
)
OF_MODELS: tuple[Callable[[Model, tuple[torch.Tensor, ...]], None], ...] = (
    a_file_gives_the_model_back,
    passes_are_idempotent,
)
