"""A kernel against the ops that it would replace, on random data of the example's sizes.

In a model, all other layers are computed between two calls of one, so that its weights come from
memory each time. Here it is copies of the layer that take turns, as many as the model reads bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.propose import ProposalBase
from esper_passes.duel import Ratio, Run, duel

_COPIES = 64  # most that take turns


class Way(NamedTuple):
    """One way to compute a value.

    Attributes:
        run: computes it.
        leaves: what has a gradient where that is computed, too.
    """

    run: Callable[[], Any]
    leaves: tuple[Tensor, ...]


@dataclass(frozen=True)
class Contest:
    """One place that could be lowered.

    Attributes:
        proposal: that lowers it.
        weights: names of its weights, for people and globs.
        facts: op, sizes, dtype and pattern: what the outcome hangs on.
        input: makes a random value for the layer to read.
        ways: makes the present way and that of the kernel for that value, with random weights.
        bytes: of the weights as they are now.
        rival: against several smaller kernels instead of the ops that are there, which this one
            must not lose either.
    """

    proposal: ProposalBase
    weights: tuple[str, ...]
    facts: Mapping[str, object]
    input: Callable[[], Tensor]
    ways: Callable[[Tensor], tuple[Way, Way]]
    bytes: int
    rival: Contest | None = None

    def text(self) -> str:
        """What competes: `vnm_linear on 64 x 1024 to 2048, 128:16:64x16`."""
        facts = self.facts
        sizes = f"{facts['tokens']} x {facts['inputs']} to {facts['outputs']}"
        return f"{facts['op']} on {sizes}, {facts['pattern']}"


@dataclass(frozen=True)
class Ground:
    """Where a contest is fought.

    Attributes:
        device: `cpu` or `cuda`.
        objective: `inference`, or `training` for a forward and a backward pass.
        frozen: whether weights do not train, on which the way of a kernel may depend.
        working_set: bytes that the model reads between two calls of a layer.
    """

    device: str = "cpu"
    objective: str = "inference"
    frozen: bool = True
    working_set: int = 0


def fight(contest: Contest, ground: Ground, bar: float) -> Ratio:
    """Time both ways, until it is clear whether the kernel is `bar` times as fast."""
    x, training = contest.input(), ground.objective == "training"
    count = max(1, min(_COPIES, ground.working_set // max(1, contest.bytes)))
    copies = [contest.ways(x) for _ in range(count)]
    if training or not ground.frozen:
        for leaf in (leaf for ways in copies for way in ways for leaf in way.leaves):
            leaf.requires_grad_()
    present, kernel = ([_run(ways[side], training) for ways in copies] for side in (0, 1))
    with torch.set_grad_enabled(training):
        return duel(_in_turn(present), _in_turn(kernel), bar=bar, device=ground.device)


def _run(way: Way, training: bool) -> Run:
    if not training:
        return way.run

    def step() -> object:
        out = way.run()
        tensors = [out] if isinstance(out, Tensor) else list(out)
        return torch.autograd.grad(tensors, way.leaves, tensors)

    return step


def _in_turn(runs: Iterable[Run]) -> Run:
    """One after the other, each of which has already run once: layouts are made at first calls."""
    turns = list(runs)
    for run in turns:
        run()
    turn = cycle(turns)

    def run_next() -> object:
        return next(turn)()

    return run_next
