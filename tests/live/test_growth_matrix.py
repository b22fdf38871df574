"""Growth in training: optimizer x init x state policy, all on one trace.

The function stays where that is promised, the next step is finite, nothing is left orphaned.
"""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.live.policy import StatePolicy
from esper.propose import AddBranch, Deepen, MergeUnits, WidenUnits
from esper.propose.growth import Init
from esper_passes.gradmax import gradmax
from esper_passes.growth_mask import ramp
from tests.live.training import OPTIMIZERS, batch, step, traced

AXIS = "axis:block.0/neurons"
INITS: tuple[Init, ...] = ("zero", "net2net", "masked", "gradmax", "rms", "random")
POLICIES = (
    StatePolicy(),
    StatePolicy(moments="zero"),
    StatePolicy(moments="asymmetric"),
    StatePolicy(moments="asymmetric", warmup=3),
)
PRESERVING = {"zero", "net2net", "masked", "gradmax"}


@cache
def _traced() -> Model:
    return traced()


def _proposal(model: Model, init: Init, inputs: Any) -> WidenUnits:
    if init == "gradmax":

        def loss(m: Any, pair: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(m(pair[0]), pair[1])

        return gradmax(model, AXIS, 3, [inputs], loss)
    return WidenUnits(axis=AXIS, count=3, init=init, seed=1)


@pytest.mark.own_verification
@pytest.mark.parametrize(
    "name", ["momentum", "adam", "adamw foreach", "adamw fused", "adagrad", "adafactor"]
)
def test_every_init_under_every_policy(name: str) -> None:
    start = copy.deepcopy(_traced())
    optimizer = OPTIMIZERS[name](list(start.parameters()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        step(start, optimizer, batch(generator))
    past = optimizer.state_dict()
    for init, policy in itertools.product(INITS, POLICIES):
        model = copy.deepcopy(start)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        optimizer.load_state_dict(copy.deepcopy(past))
        inputs = batch(torch.Generator().manual_seed(1))
        before = model.eval()(inputs[0]).detach()
        model.train()
        session = esper.Session(model, optimizer)
        where = f"{init}, {policy.text()}"
        with session.boundary() as boundary:
            (record,) = boundary.submit(_proposal(model, init, inputs), policy=policy)
        assert record.kind == "passed", f"{where}: {record.line()}"
        assert record.figures["state_policy"] == policy.text()
        session.check()
        if init in PRESERVING:
            torch.testing.assert_close(model.eval()(inputs[0]).detach(), before, msg=where)
            model.train()
        for parameter, state in optimizer.state.items():  # state has the shape of what it is for
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.ndim == parameter.ndim:
                    fits = zip(value.shape, parameter.shape, strict=True)
                    assert all(a in (1, b) for a, b in fits), f"{where}: {key}"
        old = {n: p.detach().clone() for n, p in model.named_parameters()}
        assert torch.isfinite(torch.tensor(step(model, optimizer, inputs))), where
        for parameter_name, parameter in model.named_parameters():
            assert torch.isfinite(parameter).all(), f"{where}: {parameter_name}"
            still = policy.warmup or init == "masked"
            if not still and parameter_name == "block.2.weight":
                moved = (parameter - old[parameter_name]).detach()[:, -3:]
                assert bool(moved.any()), f"{where}: new units do not learn"
        session.close()


def test_masks_open_at_boundaries() -> None:
    model = copy.deepcopy(_traced())
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    session = esper.Session(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    with session.boundary() as boundary:
        boundary.submit(WidenUnits(axis=AXIS, count=2, init="masked"))
    alphas = []
    for proposal in ramp(AXIS, 4):
        assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))
        with session.boundary() as boundary:
            (record,) = boundary.submit(proposal)
        assert record.kind == "passed", record.line()
        alphas.append(record.figures["alpha"])
        session.check()
    assert alphas == [0.25, 0.5, 0.75, 1.0]
    assert "growth_mask" not in str(model)
    assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))


def test_a_checkpoint_resumes_what_grew() -> None:
    model = copy.deepcopy(_traced())
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    session = esper.Session(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    with session.boundary() as boundary:
        records = boundary.submit(
            WidenUnits(axis=AXIS, count=2, init="masked"),
            Deepen(after="phage:block"),
            AddBranch(node="linear"),
            WidenUnits(axis="axis:stem/neurons", count=1),
        )
    assert {r.kind for r in records} == {"passed"}, [r.line() for r in records]
    step(model, optimizer, batch(generator))
    state = copy.deepcopy(session.state_dict())
    inputs = batch(generator)
    expected = step(model, optimizer, inputs)
    other = copy.deepcopy(_traced())
    again = esper.Session(other, OPTIMIZERS["adamw"](list(other.parameters())))
    again.load_state_dict(state)
    assert step(other, again.optimizer, inputs) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


def test_merging_trained_copies_is_lossy_and_says_so() -> None:
    model = copy.deepcopy(_traced())
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        boundary.submit(WidenUnits(axis=AXIS, count=2, init="net2net", sources=(3, 5)))
    step(model, optimizer, batch(torch.Generator().manual_seed(0)))
    with session.boundary() as boundary:
        (record,) = boundary.submit(MergeUnits(axis=AXIS, units=(12, 13), into=(3, 5)))
    assert record.kind == "passed", record.line()
    assert record.figures["tolerance"] == "lossy"
    assert model.get_parameter("block.0.weight").shape == (12, 10)
    session.check()
