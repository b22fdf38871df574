"""The one door: dry runs, atomic application, rollback bit for bit, records and history."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from esper import apply as applying
from esper import manager as managing
from esper.errors import VerificationError
from esper.instruments.base import Instrument
from esper.ir import shapes
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.manager import PassManager, Verify
from esper.passbase import Pass, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import (
    EliminateDead,
    FoldConstants,
    FuseConvBN,
    Proposal,
    PruneUnits,
    SelectBackend,
    parse,
)
from tests import zoo
from tests.ir.small import convolution_inputs, convolutions, perceptron, perceptron_inputs
from tests.snapshots import assert_same, snapshot

NEURONS = "axis:up/neurons"
CHANNELS = "axis:conv/channels"
Case = tuple[Callable[[], Model], Proposal]


def dead_unit() -> Model:
    """The perceptron whose hidden unit 2 is the constant relu(0.5), with gradients present."""
    model = perceptron()
    up = model.get_submodule("up")
    with torch.no_grad():
        up.weight[2] = 0.0  # type: ignore[operator]
        up.bias[2] = 0.5  # type: ignore[operator]
    return with_gradients(model, perceptron_inputs())


def with_gradients(model: Model, args: tuple[Any, ...]) -> Model:
    out = model(*args)
    sum(t.square().sum() for t in (out.values() if isinstance(out, dict) else [out])).backward()
    return model


def constant_node() -> Model:
    """The perceptron with two nodes that depend on no input and nothing trainable."""
    model = perceptron()
    offset = next(n for n in model.graph.nodes if n.op == "get_attr" and n.target == "offset")
    readers = list(offset.users)
    root = _insert_after(model, offset, torch.ops.aten.sqrt.default, "root")
    square = _insert_after(model, root, torch.ops.aten.neg.default, "negative")
    for reader in readers:
        reader.replace_input_with(offset, square)
    model.recompile()
    return with_gradients(model, perceptron_inputs())


def dead_node() -> Model:
    """The perceptron with a node whose result nobody reads."""
    model = perceptron()
    relu = next(n for n in model.graph.nodes if n.target is torch.ops.aten.relu.default)
    _insert_after(model, relu, torch.ops.aten.neg.default, "dead")
    model.recompile()
    return with_gradients(model, perceptron_inputs())


def _insert_after(model: Model, node: fx.Node, op: Any, name: str) -> fx.Node:
    with model.graph.inserting_after(node):
        made = model.graph.create_node("call_function", op, (node,), name=name)
    assert made.name == name
    made.meta = {key: node.meta.get(key) for key in ("val", "module", "source")}
    model.invalidate()
    return made


CASES: dict[str, Case] = {
    "neurons": (
        lambda: with_gradients(perceptron(), perceptron_inputs()),
        PruneUnits(axis=NEURONS, units=(1, 5)),
    ),
    "folded": (dead_unit, PruneUnits(axis=NEURONS, units=(2, 5), fold_constants=True)),
    "channels and a literal": (
        lambda: with_gradients(convolutions(), convolution_inputs()),
        PruneUnits(axis=CHANNELS, units=(0, 3)),
    ),
    "fuse": (
        lambda: with_gradients(convolutions(), convolution_inputs()),
        FuseConvBN(convolution="conv2d", batch_norm="batch_norm"),
    ),
    "constants": (constant_node, FoldConstants(nodes=("negative",))),
    "dead": (dead_node, EliminateDead(nodes=("dead",))),
}
every_case = pytest.mark.parametrize("case", CASES)


def built(case: str) -> tuple[Model, Proposal]:
    build, proposal = CASES[case]
    return build(), proposal


# -- dry run -------------------------------------------------------------------------------------


@every_case
def test_dry_run_changes_nothing_and_equals_apply(case: str) -> None:
    model, proposal = built(case)
    before = snapshot(model)
    first, second = model.plan(proposal), model.plan(proposal)
    assert isinstance(first, Plan)
    assert isinstance(second, Plan)
    assert_same(before, snapshot(model))
    assert first.digest == second.digest
    record = PassManager(model).apply(proposal)
    assert record.kind == "passed", record.line()
    assert record.plan_digest == first.digest
    assert record.plan_summary == first.summary
    assert record.figures["tolerance"] == first.tolerance
    assert snapshot(model)["text"] != before["text"]


def test_digest_depends_on_what_would_happen() -> None:
    model = perceptron()
    plans = [model.plan(PruneUnits(axis=NEURONS, units=units)) for units in ((1,), (2,), (1, 2))]
    assert len({plan.digest for plan in plans if isinstance(plan, Plan)}) == 3


def test_apply_of_a_model_leaves_it_alone_and_returns_a_copy() -> None:
    model = perceptron()
    before = snapshot(model)
    changed, record = model.apply(PruneUnits(axis=NEURONS, units=(0,)))
    assert record.kind == "passed"
    assert_same(before, snapshot(model))
    assert changed.anatomy.axes[NEURONS].unit_ids == (1, 2, 3, 4, 5, 6, 7)


# -- rollback ------------------------------------------------------------------------------------


@every_case
def test_transaction_rolls_back_bit_for_bit(case: str) -> None:
    model, proposal = built(case)
    before = snapshot(model)
    manager = PassManager(model)
    with manager.transaction() as transaction:
        assert manager.apply(proposal).kind == "passed"
        transaction.roll_back()
    assert_same(before, snapshot(model))
    assert manager.apply(proposal).kind == "passed"  # and it is as usable as before


def test_inner_transaction_rolls_back_to_its_own_start() -> None:
    model = perceptron()
    manager = PassManager(model)
    start = snapshot(model)
    with manager.transaction() as outer:
        manager.apply(PruneUnits(axis=NEURONS, units=(1,)))
        middle = snapshot(model)
        with manager.transaction() as inner:
            manager.apply(PruneUnits(axis=NEURONS, units=(4, 6)))
            inner.roll_back()
        assert_same(middle, snapshot(model))
        outer.roll_back()
    assert_same(start, snapshot(model))


def test_several_kinds_of_rewrite_roll_back_together() -> None:
    model = with_gradients(convolutions(), convolution_inputs())
    before, manager = snapshot(model), PassManager(model)
    with manager.transaction() as transaction:
        for proposal in (
            PruneUnits(axis=CHANNELS, units=(1,)),
            FuseConvBN(convolution="conv2d", batch_norm="batch_norm"),
            PruneUnits(axis=CHANNELS, units=(3,)),
            SelectBackend(backend="inductor"),
        ):
            record = manager.apply(proposal)
            assert record.kind == "passed", record.line()
        assert manager.backend == "inductor"
        transaction.roll_back()
    assert manager.backend == "eager"
    assert_same(before, snapshot(model))


@pytest.mark.own_verification
@every_case
@pytest.mark.parametrize("verification", ["incremental", "full"])
def test_failing_verifier_undoes(
    case: str, verification: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, proposal = built(case)
    before = snapshot(model)
    calls = itertools.count()

    def fails(model: Model, **scope: Any) -> None:
        if verification == "full" and next(calls) == 0:
            return  # the check before the change
        raise VerificationError("the IR breaks an invariant: %x", ("%x",))

    monkeypatch.setattr(managing, "verify", fails)
    record = PassManager(model, verify=verification).apply(proposal)
    assert (record.kind, record.code) == ("failure", "verification")
    assert record.figures["problems"] == ["%x"]
    assert record.plan_digest
    assert_same(before, snapshot(model))


STAGES = ("_state", "_edit", "_cut", "_invalidate", "propagate")


def interrupt(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> list[str]:
    """Raise `error` after the last step of a stage took effect; returns what was reached."""
    reached: list[str] = []
    owner: Any = shapes if stage == "propagate" else applying.Applier
    original = getattr(owner, stage)

    def broken(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        reached.append(stage)
        raise error

    monkeypatch.setattr(owner, stage, broken)
    return reached


@every_case
@pytest.mark.parametrize("stage", STAGES)
def test_exception_in_the_middle_of_apply_undoes(
    case: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, proposal = built(case)
    before = snapshot(model)
    with monkeypatch.context() as patch:
        reached = interrupt(patch, stage, RuntimeError("injected"))
        record = PassManager(model).apply(proposal)
    if reached:
        assert (record.kind, record.code) == ("failure", "error")
        assert "injected" in record.reason
        assert_same(before, snapshot(model))
    else:
        assert record.kind == "passed"  # this plan has no such step


@every_case
@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_in_the_middle_of_apply_undoes_and_passes_on(
    case: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, proposal = built(case)
    before = snapshot(model)
    with monkeypatch.context() as patch:
        reached = interrupt(patch, stage, KeyboardInterrupt())
        if stage in _steps(case):
            with pytest.raises(KeyboardInterrupt):
                PassManager(model).apply(proposal)
            assert reached
            assert_same(before, snapshot(model))
        else:
            PassManager(model).apply(proposal)
            assert not reached


def _steps(case: str) -> set[str]:
    """Which stages the plan of a case passes through."""
    steps = {
        "neurons": {"_state", "_cut"},
        "folded": {"_state", "_cut", "_invalidate"},  # new values may be of another size
        "channels and a literal": {"_state", "_edit", "_cut"},
        "fuse": {"_state", "_edit", "_invalidate"},
        "constants": {"_state", "_edit", "_invalidate"},
        "dead": {"_edit", "_invalidate"},
    }
    return steps[case] | {"propagate"}


def test_outer_transaction_survives_a_failure_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    manager = PassManager(model)
    start = snapshot(model)
    with manager.transaction() as transaction:
        assert manager.apply(PruneUnits(axis=NEURONS, units=(1,))).kind == "passed"
        middle = snapshot(model)
        with monkeypatch.context() as patch:
            interrupt(patch, "_cut", RuntimeError("injected"))
            assert manager.apply(PruneUnits(axis=NEURONS, units=(2,))).kind == "failure"
        assert_same(middle, snapshot(model))
        transaction.roll_back()
    assert_same(start, snapshot(model))


# -- refusals and vetoes -------------------------------------------------------------------------


def test_refusal_changes_nothing_and_is_not_history() -> None:
    model = perceptron()
    before = snapshot(model)
    record = PassManager(model).apply(PruneUnits(axis="axis:up/neuron", units=(0,)))
    assert (record.kind, record.code) == ("missed", "unknown-target")
    assert_same(before, snapshot(model))


def test_proposal_without_a_rewrite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managing, "rewrites", dict)
    record = PassManager(perceptron()).apply(PruneUnits(axis=NEURONS, units=(0,)))
    assert (record.kind, record.code) == ("missed", "no-rewrite")
    assert "prune-units" in record.reason


def test_empty_plan_is_a_missed_record(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(Rewrite):
        def plan(self, model: Model, proposal: PruneUnits) -> Plan | Refusal:
            return Plan(proposal, "nothing")

    monkeypatch.setattr(managing, "rewrites", lambda: {"prune-units": Nothing()})
    model = perceptron()
    record = PassManager(model).apply(PruneUnits(axis=NEURONS, units=(0,)))
    assert (record.kind, record.code) == ("missed", "no-change")
    assert model.history == []


def test_an_instrument_may_veto() -> None:
    class Veto(Instrument):
        def before_proposal(
            self, model: Model, pass_: Pass | None, proposal: Proposal
        ) -> Refusal | None:
            return Refusal("veto", "not today")

    model = perceptron()
    before = snapshot(model)
    record = PassManager(model, instruments=[Veto()]).apply(PruneUnits(axis=NEURONS, units=(0,)))
    assert (record.kind, record.code) == ("missed", "veto")
    assert_same(before, snapshot(model))


# -- optimizers ----------------------------------------------------------------------------------


def test_parameters_keep_identity_and_gradients_follow() -> None:
    model = with_gradients(perceptron(), perceptron_inputs())
    before = dict(model.named_parameters())
    gradients = {n: p.grad.clone() for n, p in before.items() if p.grad is not None}
    PassManager(model).apply(PruneUnits(axis=NEURONS, units=(0, 7)))
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    kept = torch.arange(1, 7)
    expected = {
        "up.weight": gradients["up.weight"][kept],
        "up.bias": gradients["up.bias"][kept],
        "down.weight": gradients["down.weight"][:, kept],
        "down.bias": gradients["down.bias"],
    }
    for name, gradient in expected.items():
        grad = after[name].grad
        assert grad is not None
        assert torch.equal(grad, gradient), name


def test_an_optimizer_bound_before_the_cut_trains_the_cut_model() -> None:
    model = with_gradients(perceptron(), perceptron_inputs())
    bound = torch.optim.SGD(model.parameters(), lr=0.1)
    PassManager(model).apply(PruneUnits(axis=NEURONS, units=(0, 7)))
    twin = copy.deepcopy(model)
    fresh = torch.optim.SGD(twin.parameters(), lr=0.1)
    for each, optimizer in ((model, bound), (twin, fresh)):
        optimizer.zero_grad()
        with_gradients(each, perceptron_inputs())
        optimizer.step()
    start = dict(perceptron().named_parameters())
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.shape != start[name].shape or not torch.equal(mine, start[name]), name


def test_a_loss_that_is_still_held_does_not_break_the_next_step() -> None:
    model = perceptron()
    loss = model(*perceptron_inputs())["logits"].square().sum()
    loss.backward()
    manager = PassManager(model)
    with manager.transaction() as transaction:
        manager.apply(PruneUnits(axis=NEURONS, units=(0, 7)))
        with_gradients(model, perceptron_inputs())
        held = model(*perceptron_inputs())["logits"].sum()
        transaction.roll_back()
    with_gradients(model, perceptron_inputs())
    manager.apply(PruneUnits(axis=NEURONS, units=(1,)))
    model.zero_grad()
    with_gradients(model, perceptron_inputs())
    assert model.tensor("up.weight").grad.shape == (7, 6)  # type: ignore[union-attr]
    assert loss.grad_fn is not None
    assert held.grad_fn is not None


def test_an_optimizer_survives_a_rollback() -> None:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with_gradients(model, perceptron_inputs())
    optimizer.step()  # moments of the uncut shapes now exist
    manager = PassManager(model)
    with manager.transaction() as transaction:
        manager.apply(PruneUnits(axis=NEURONS, units=(0, 7)))
        transaction.roll_back()
    optimizer.step()
    assert model.tensor("up.weight").shape == (8, 6)  # type: ignore[union-attr]


def test_tied_parameters_stay_tied_when_cut() -> None:
    model, args, kwargs = zoo.traced("gpt2")
    tied = {n for n, first in model.canonical_names().items() if n != first}
    assert tied
    axis = next(a for a in zoo.cuttable(model).values() if a.kind == "embedding")
    record = PassManager(model).apply(PruneUnits(axis=axis.id, units=zoo.some_units(axis)))
    assert record.kind == "passed", record.line()
    assert {n for n, first in model.canonical_names().items() if n != first} == tied
    model(*args, **kwargs)


# -- order and history ---------------------------------------------------------------------------


@pytest.mark.own_verification
@pytest.mark.parametrize("name", ["gpt2", "resnet_basic"])
def test_independent_proposals_commute(name: str) -> None:
    model, _, _ = zoo.traced(name)
    axes = list(zoo.cuttable(model).values())
    cuts = [PruneUnits(axis=axis.id, units=zoo.some_units(axis)) for axis in axes]
    forward, backward = (_applied(model, order) for order in (cuts, cuts[::-1]))
    assert graphs_equal(forward, backward) is None
    one, two = snapshot(forward), snapshot(backward)
    for part in ("text", "code", "nodes", "axes", "state names"):
        assert one[part] == two[part], part
    for (name_, mine), (_, theirs) in zip(
        forward.all_tensors(), backward.all_tensors(), strict=True
    ):
        assert torch.equal(mine, theirs), name_


def test_two_cuts_of_one_axis_equal_one() -> None:
    together = _applied(perceptron(), [PruneUnits(axis=NEURONS, units=(1, 4, 6))])
    apart = _applied(
        perceptron(),
        [PruneUnits(axis=NEURONS, units=(4,)), PruneUnits(axis=NEURONS, units=(6, 1))],
    )
    assert together.anatomy.axes[NEURONS].unit_ids == (0, 2, 3, 5, 7)
    assert str(together) == str(apart)
    for (name, mine), (_, theirs) in zip(together.all_tensors(), apart.all_tensors(), strict=True):
        assert torch.equal(mine, theirs), name


def test_history_replays_to_the_same_model() -> None:
    model = convolutions()
    manager = PassManager(model)
    asked = [
        PruneUnits(axis=CHANNELS, units=(1,), proposer="someone", evidence={"saliency": 0.5}),
        PruneUnits(axis=CHANNELS, units=(1,)),  # refused: gone
        FuseConvBN(convolution="conv2d", batch_norm="batch_norm"),
    ]
    kinds = [manager.apply(proposal).kind for proposal in asked]
    assert kinds == ["passed", "missed", "passed"]
    assert [parse(entry) for entry in model.history] == [asked[0], asked[2]]
    again = _applied(convolutions(), [parse(entry) for entry in model.history])
    assert str(again) == str(model)
    assert again.history == model.history


def test_history_is_cut_by_a_rollback() -> None:
    model = perceptron()
    manager = PassManager(model)
    manager.apply(PruneUnits(axis=NEURONS, units=(0,)))
    with manager.transaction() as transaction:
        manager.apply(PruneUnits(axis=NEURONS, units=(1,)))
        assert len(model.history) == 2
        transaction.roll_back()
    assert [list(entry["units"]) for entry in model.history] == [[0]]


def test_batch_generates_code_when_it_ends_and_calls_in_between_are_right() -> None:
    model, single = perceptron(), perceptron()
    cuts = [PruneUnits(axis=NEURONS, units=(unit,)) for unit in (0, 3, 5)]
    manager = PassManager(model)
    with manager.batch():
        for cut in cuts:
            manager.apply(cut)
        inside = model(*perceptron_inputs())
    apart = _applied(single, cuts)
    for output in ("logits", "hidden"):
        assert torch.equal(inside[output], apart(*perceptron_inputs())[output])
        assert torch.equal(model(*perceptron_inputs())[output], inside[output])


def test_full_verification_sees_damage_done_elsewhere() -> None:
    model = convolutions()
    next(n for n in model.graph.nodes if n.name == "view").args = (
        *next(n for n in model.graph.nodes if n.name == "view").args[:1],
        [-1, 50],
    )
    record = PassManager(model, verify="full").apply(PruneUnits(axis=CHANNELS, units=(0,)))
    assert (record.kind, record.code) == ("failure", "verification")


def _applied(model: Model, proposals: list[Any]) -> Model:
    changed = copy.deepcopy(model)
    manager = PassManager(changed)
    for proposal in proposals:
        record = manager.apply(proposal)
        assert record.kind == "passed", record.line()
    return changed
