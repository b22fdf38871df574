"""Training of every kind goes on through every kind of change.

Optimizer x scheduler x precision x compilation x averages x accumulation x clipping x changes are
drawn by hypothesis; `ESPER_MATRIX=500 pytest tests/live/test_matrix.py` draws more than CI does.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

import esper
from esper.ir.model import Model
from esper.propose import (
    DropRegion,
    FoldMask,
    ProposalBase,
    PruneUnits,
    RegrowMask,
    SetMask,
    WidenUnits,
)
from tests.live.training import OPTIMIZERS, batch, traced

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

EXAMPLES = int(os.environ.get("ESPER_MATRIX", "30"))
STEPS = 8
Scheduler = Callable[[torch.optim.Optimizer], Any]
SCHEDULERS: dict[str, Scheduler] = {
    "none": lambda _: None,
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(
        o, 0.02, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
}
HIDDEN, STREAM = "axis:block.0/neurons", "axis:stem/neurons"
CHANGES = {
    "cut": PruneUnits(axis=HIDDEN, units=(1, 4)),
    "cut the stream": PruneUnits(axis=STREAM, units=(0, 3)),
    "drop": DropRegion(region="phage:block"),
    "widen": WidenUnits(axis=HIDDEN, count=3),
    "widen by copies": WidenUnits(axis=HIDDEN, count=2, init="net2net"),
    "mask": SetMask(tensor="block.0.weight", pattern="1:2"),
    "regrow": RegrowMask(tensor="block.0.weight", grow="random"),
    "fold": FoldMask(tensor="block.0.weight"),
}
POLICIES = {
    "keep": esper.StatePolicy(),
    "zero": esper.StatePolicy(moments="zero"),
    "asymmetric": esper.StatePolicy(moments="asymmetric", warmup=3),
}


@dataclass(frozen=True)
class Training:
    """One way to train, and what changes at which step."""

    optimizer: str
    scheduler: str
    precision: str
    compiled: str
    average: bool
    accumulate: int
    clip: bool
    policy: str
    changes: tuple[tuple[int, str], ...]


TRAININGS = st.builds(
    Training,
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(sorted(SCHEDULERS)),
    st.sampled_from(["float64", "float32", "bfloat16", "scaled float16"]),
    # A compilation takes seconds: one example in eight has any.
    st.sampled_from(["no"] * 14 + ["whole", "blocks"]),
    st.booleans(),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(sorted(POLICIES)),
    st.lists(
        st.tuples(st.integers(0, STEPS - 2), st.sampled_from(sorted(CHANGES))), max_size=3
    ).map(lambda pairs: tuple(sorted(pairs))),
)


@cache
def _traced(dtype: torch.dtype) -> Model:
    return traced(dtype)


class Run:
    """A model in training."""

    def __init__(self, how: Training) -> None:
        self.how = how
        self.dtype = torch.float64 if how.precision == "float64" else torch.float32
        self.model = copy.deepcopy(_traced(self.dtype))
        groups: Any = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1]},
        ]
        self.optimizer = OPTIMIZERS[how.optimizer](groups)
        self.scheduler = SCHEDULERS[how.scheduler](self.optimizer)
        scaled = how.precision == "scaled float16"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0) if scaled else None
        self.average = torch.optim.swa_utils.AveragedModel(self.model) if how.average else None
        self.session = esper.Session(
            self.model,
            self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            ema=self.average,
            verify="full",
            signals_every=2,
        )
        if how.compiled != "no":
            torch._dynamo.reset()
            self.session.compile(per_block=how.compiled == "blocks", backend="aot_eager")
        self.data = torch.Generator().manual_seed(1)

    def loss(self) -> torch.Tensor:
        inputs, labels = batch(self.data, self.dtype)
        lower = {"bfloat16": torch.bfloat16, "scaled float16": torch.float16}
        kind = lower.get(self.how.precision)
        with torch.autocast("cpu", kind, enabled=kind is not None):
            return nn.functional.cross_entropy(self.model(inputs).float(), labels)

    def step(self) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.how.accumulate):
            loss = self.loss()
            total += float(loss.detach())
            torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
        if self.how.clip:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]


def _outputs(model: Model, dtype: torch.dtype) -> torch.Tensor:
    inputs = torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=dtype)
    training = model.training
    model.eval()
    with torch.no_grad():
        result: torch.Tensor = model(inputs)
    model.train(training)
    return result


def _orphans(run: Run) -> Iterator[str]:
    live = {id(p) for p in run.model.parameters()}
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    if sorted(live) != sorted(held):
        yield "the optimizer's parameters are not those that live"
    if not {id(p) for p in run.optimizer.state} <= live:
        yield "state of a parameter that is gone"
    for parameter, state in run.optimizer.state.items():
        for key in ("exp_avg", "momentum_buffer"):
            moment = state.get(key)
            if moment is not None and moment.shape != parameter.shape:
                yield f"{key} has another shape than its parameter"
    if run.average is not None:
        own = {n: p.shape for n, p in run.model.named_parameters()}
        if {n: p.shape for n, p in run.average.module.named_parameters()} != own:
            yield "the average has other parameters"


@settings(
    max_examples=EXAMPLES,
    derandomize="ESPER_MATRIX" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(TRAININGS)
def test_training_goes_on(how: Training) -> None:
    torch.manual_seed(0)
    run, pending = Run(how), list(how.changes)
    # The schedule of learning rates is that of a run in which nothing changes.
    idle = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=run.rates()[0])
    schedule = SCHEDULERS[how.scheduler](idle)
    for step in range(STEPS):
        assert math.isfinite(run.step())
        if schedule is not None:
            idle.step()
            schedule.step()
            assert run.rates() == pytest.approx([idle.param_groups[0]["lr"]] * 2)
        with run.session.boundary() as boundary:
            while pending and pending[0][0] == step:
                proposal: ProposalBase = CHANGES[pending.pop(0)[1]]
                before = _outputs(run.model, run.dtype)
                (record,) = boundary.submit(proposal, policy=POLICIES[how.policy])
                event(f"{proposal.type} {record.kind}")
                assert record.kind in ("passed", "missed"), record.reason
                if record.kind == "missed" or isinstance(proposal, (WidenUnits, FoldMask)):
                    tight = 1e-12 if run.dtype is torch.float64 else 1e-5
                    after = _outputs(run.model, run.dtype)
                    torch.testing.assert_close(after, before, rtol=tight, atol=tight)
        assert list(_orphans(run)) == []
    assert all(p.isfinite().all() for p in run.model.parameters())
    if how.compiled != "no":
        assert run.session.compilations
    run.session.close()
