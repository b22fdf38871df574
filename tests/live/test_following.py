"""Optimizer state follows surgery. Oracle: a cut in training is training with the units masked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import esper
from esper.ir.model import Model
from esper.ir.reference import masked_reference
from esper.live.checkpoint import capture_optimizer, restore_optimizer
from esper.propose import PruneUnits
from tests.live.training import CUT, DROP, NARROW, OPTIMIZERS, batch, step, traced

# Second moments that units share, and steps by sign, where rounding decides for a zero gradient.
APART = ("adafactor", "rprop")
POLICIES = [
    esper.StatePolicy(moments=moments, warmup=warmup)
    for moments in ("keep", "zero", "asymmetric")
    for warmup in (0, 3)
]


def _trained(name: str, steps: int = 4) -> tuple[Model, torch.optim.Optimizer, torch.Generator]:
    model = traced()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        step(model, optimizer, batch(generator))
    return model, optimizer, generator


def _kept(model: Model, cut: PruneUnits, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What a cut leaves of a tensor of the uncut model."""
    plan = model.plan(cut)
    assert isinstance(plan, esper.plan.Plan)
    for op in plan.state.ops.get(name, ()):
        tensor = op(tensor)  # type: ignore[operator]
    return tensor


@pytest.mark.parametrize("cut", [CUT, NARROW], ids=["neurons", "stream"])
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in APART])
def test_a_cut_in_training_is_training_with_units_masked(name: str, cut: PruneUnits) -> None:
    model, optimizer, generator = _trained(name)
    uncut = copy.deepcopy(model)
    masked = masked_reference(model, {cut.axis: cut.units})
    other = OPTIMIZERS[name](list(masked.parameters()))
    captured = copy.deepcopy(capture_optimizer(model, optimizer))
    restore_optimizer(masked, other, captured)

    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        (record,) = boundary.submit(cut)
    assert record.kind == "passed", record.line()
    for _ in range(5):
        inputs = batch(generator)
        found, expected = step(model, optimizer, inputs), step(masked, other, inputs)
        assert found == pytest.approx(expected, rel=1e-9)
    reference = dict(masked.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        wanted = _kept(uncut, cut, parameter_name, reference[parameter_name].detach())
        # A bias before a batch norm has no gradient but rounding, which some optimizers scale up.
        torch.testing.assert_close(parameter, wanted, rtol=1e-7, atol=1e-6)


# Every policy with every proposal for one optimizer, and each of both for all others.
MATRIX = [("adamw", proposal, policy) for proposal in (CUT, NARROW, DROP) for policy in POLICIES]
MATRIX += [
    (name, proposal, policy)
    for name in OPTIMIZERS
    for proposal, policy in ((CUT, POLICIES[0]), (CUT, POLICIES[3]), (DROP, POLICIES[4]))
]


@pytest.mark.parametrize(
    ("name", "proposal", "policy"), MATRIX, ids=lambda v: getattr(v, "type", None) or str(v)
)
def test_every_optimizer_goes_on(name: str, proposal: Any, policy: esper.StatePolicy) -> None:
    model, optimizer, generator = _trained(name)
    objects = dict(model.named_parameters())
    session = esper.Session(model, optimizer, policies={proposal.type: policy})
    with session.boundary() as boundary:
        (record,) = boundary.submit(proposal)
    assert record.kind == "passed", record.line()
    assert record.figures["state_policy"] == policy.text()
    session.check()
    for parameter_name, own in model.named_parameters():
        assert own is objects[parameter_name]  # schedulers, hooks and callers hold them
    held = {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= held  # nothing is left orphaned
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim == parameter.ndim > 0:
                fits = zip(value.shape, parameter.shape, strict=True)
                assert all(have in (want, 1) for have, want in fits), key
    for _ in range(4):
        assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("proposal", [CUT, DROP], ids=["cut", "drop"])
def test_an_exception_at_a_boundary_undoes_everything(name: str, proposal: Any) -> None:
    model, optimizer, _ = _trained(name)
    session = esper.Session(model, optimizer)
    text, tensors = str(model), {n: t.detach().clone() for n, t in model.all_tensors()}
    groups = [list(map(id, group["params"])) for group in optimizer.param_groups]
    state = copy.deepcopy(capture_optimizer(model, optimizer))

    def fail() -> None:
        with session.boundary() as boundary:
            assert boundary.submit(proposal)[0].kind == "passed"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (str(model), session.tick) == (text, 0)
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == groups
    for tensor_name, tensor in model.all_tensors():
        assert torch.equal(tensor, tensors[tensor_name])
    after = capture_optimizer(model, optimizer)
    assert after["state"].keys() == state["state"].keys()
    for parameter_name, values in after["state"].items():
        for key, value in values.items():
            wanted = state["state"][parameter_name][key]
            same = (
                torch.equal(value, wanted) if isinstance(value, torch.Tensor) else value == wanted
            )
            assert same, (parameter_name, key)


def test_resets_restart_the_step_count() -> None:
    model, optimizer, _ = _trained("adamw")
    session = esper.Session(
        model, optimizer, policies={CUT.type: esper.StatePolicy(moments="zero")}
    )
    with session.boundary() as boundary:
        boundary.submit(CUT)
    touched = {"block.0.weight", "block.0.bias", "block.2.weight"}
    stepped = {n for n, p in model.named_parameters() if p in optimizer.state}
    assert stepped == {n for n, _ in model.named_parameters()} - touched


def test_groups_of_different_hyper_parameters_stay() -> None:
    model = traced()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda e: 0.9**e, lambda e: 0.8**e])
    session = esper.Session(model, optimizer, scheduler=scheduler)
    generator = torch.Generator().manual_seed(2)
    for proposal in (CUT, NARROW, DROP):
        step(model, optimizer, batch(generator))
        scheduler.step()
        with session.boundary() as boundary:
            assert boundary.submit(proposal)[0].kind == "passed"
    first, second = optimizer.param_groups
    assert {p.ndim for p in first["params"]} == {2}
    assert {p.ndim for p in second["params"]} == {1}
    assert (len(first["params"]), len(second["params"])) == (2, 4)
    assert first["lr"] == pytest.approx(1e-3 * 0.9**3)
    assert second["lr"] == pytest.approx(1e-3 * 0.8**3)


def test_names_in_the_groups_stay_those_of_the_parameters() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        boundary.submit(DROP)
    (group,) = optimizer.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert group["param_names"] == [names[id(p)] for p in group["params"]]
    assert "block.0.weight" not in group["param_names"]


def test_an_optimizer_over_foreign_parameters_is_refused() -> None:
    foreign = torch.nn.Linear(2, 2)
    with pytest.raises(esper.BoundaryError, match="do not live in the model"):
        esper.Session(traced(), torch.optim.SGD(foreign.parameters(), lr=0.1))


def test_a_parameter_that_the_optimizer_lost_is_noticed() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = esper.Session(model, optimizer)
    optimizer.param_groups[0]["params"].pop()
    with pytest.raises(esper.BoundaryError, match=r"does not hold head\.bias"):
        session.check()
    optimizer.param_groups[0]["params"] *= 2
    with pytest.raises(esper.BoundaryError, match="twice"):
        session.check()


def test_what_was_left_out_stays_left_out() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.get_submodule("head").parameters(), lr=0.1)
    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        assert boundary.submit(CUT)[0].kind == "passed"
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_two_optimizers_share_a_model() -> None:
    model = traced()
    one = torch.optim.AdamW(model.get_submodule("block").parameters())
    two = torch.optim.SGD([p for n, p in model.named_parameters() if "block" not in n], lr=0.1)
    session = esper.Session(model, [one, two])
    generator = torch.Generator().manual_seed(0)
    step(model, one, batch(generator))
    with session.boundary() as boundary:
        assert boundary.submit(DROP)[0].kind == "passed"
    assert one.param_groups[0]["params"] == []
    two.step()
    session.check()
