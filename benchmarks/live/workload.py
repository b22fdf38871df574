"""A small training run that changes its structure: cuts and growth by a sampled policy.

Everything that a run can carry is in it: AdamW, a schedule, an average of the weights, dropout from
PyTorch's own generator, batch statistics, a governor, keyframes, digests at every fifth boundary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.propose import PruneUnits, WidenUnits
from esper.recorder import policy
from esper.recorder.calls import Call
from esper.recorder.decisions import HeadMask, HeadSample, Mask
from esper.recorder.generators import Generators
from esper.session import Session

ABOUT = (
    "steps with AdamW, OneCycleLR, an average of the weights, dropout, batch norm, a "
    "governor, a sampled decision every fourth step and a keyframe every fifth"
)
AXIS = "axis:block.0/neurons"
#: Called before each step; benchmarks stop or kill a run here.
hook: Callable[[int], None] = lambda tick: None  # noqa: E731 - replaced as a whole


class Net(nn.Module):
    """A residual perceptron with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.block = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 16))
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of three classes."""
        x = torch.relu(self.stem(x))
        logits: torch.Tensor = self.head(torch.relu(self.norm(x + self.block(x))))
        return logits


@cache
def traced() -> Model:
    """The model at its start; traced once a process."""
    torch.manual_seed(0)
    return esper.trace(Net(), (torch.randn(4, 8),))


def warm() -> None:
    """Everything that is slow for the first time in a process, but for autograd: before forks."""
    model = copy.deepcopy(traced())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    average = torch.optim.swa_utils.AveragedModel(model)
    session = esper.Session(model, optimizer, ema=average)
    with session.boundary() as boundary:
        boundary.submit(PruneUnits(axis=AXIS, units=(0,)), WidenUnits(axis=AXIS, count=2))
    session.load_state_dict(session.state_dict())
    digest(session)


@esper.replayable
class Sampler:
    """Keeps, cuts a unit or adds some: the higher the loss, the rather it adds."""

    def decide(
        self, values: Any, masks: policy.Masks, generators: Generators
    ) -> Sequence[HeadSample]:
        """Two heads: what to do, and how many units."""
        wide = (values["units"] - 24) / 8
        logits = (0.0, 0.5 + wide, values["loss"] - wide)
        op = policy.sample("op", logits, masks["op"], generators, stream="sampler")
        given = policy.chosen([op])
        mask = policy.mask_of(masks, "count", given)
        flat = (0.0,) * len(mask.choices)
        return [op, policy.sample("count", flat, mask, generators, stream="sampler", given=given)]


_FREE = HeadMask(("1", "2", "3"), (True,) * 3, ("",) * 3)
_NONE = HeadMask(("-",), (True,), ("",))


def _mask(units: int) -> Mask:
    least = "empty-axis" if units <= 4 else ""
    return Mask(
        {
            "op": HeadMask(("keep", "cut", "widen"), (True, not least, True), ("", least, "")),
            "count": _FREE,
            "count|op=keep": _NONE,
        },
        {"empty-axis": "four units stay"} if least else {},
    )


@esper.program
def train(recorder: Any, seed: int = 0, steps: int = 40, keyframes_every: int = 5) -> str:
    """The run; returns a digest of everything that it ended with."""
    generators = esper.Generators(seed)
    model = copy.deepcopy(traced())
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps + 1)
    average = torch.optim.swa_utils.AveragedModel(model)
    session = esper.Session(
        model,
        optimizer,
        scheduler=schedule,
        ema=average,
        recorder=recorder,
        generators=generators,
        governor=esper.Governor(),
        recording=esper.Recording(
            digests_every=5,
            keyframes_every=keyframes_every,
            keyframes=20,
            agents={"sampler": Call.of(Sampler)},
        ),
    )
    sampler = Sampler()
    while session.tick < steps:
        hook(session.tick)
        source = generators["data"].generator()
        x = torch.randn(16, 8, generator=source)
        y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        with session.boundary(loss, batch=(x, y)) as boundary:
            if session.tick % 4 == 3:
                _act(session, boundary, sampler, float(loss.detach()))
    session.close()
    return digest(session)


def _act(session: Session, boundary: Any, sampler: Sampler, loss: float) -> None:
    axis = session.model.anatomy.axes[AXIS]
    samples, cause = policy.decide(
        sampler,
        {"loss": loss, "units": axis.size},
        _mask(axis.size),
        session.generators,
        recorder=session.recorder,
        agent="sampler",
        target=AXIS,
    )
    chosen = policy.chosen(samples)
    if chosen["op"] == "cut":
        units = axis.unit_ids[: int(chosen["count"])]
        boundary.submit(PruneUnits(axis=AXIS, units=units, proposer="sampler"), cause=cause)
    elif chosen["op"] == "widen":
        seed = session.generators["init"].bits() >> 33
        wide = WidenUnits(axis=AXIS, count=int(chosen["count"]), seed=seed, proposer="sampler")
        boundary.submit(wide, cause=cause)


def digest(session: Session) -> str:
    """Of all that a run ended with: model, optimizer, schedule, average, chance."""
    from esper.live.keyframes import content

    return content({**session.state_dict(), "recorder": None})
