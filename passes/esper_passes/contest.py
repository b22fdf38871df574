"""A kernel against the ops that it would replace, on random data of the example's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.propose import ProposalBase
from esper_passes.duel import Ratio, Run, duel


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
        ways: makes the present way and that of the kernel, on random data.
        rival: against several smaller kernels instead of the ops that are there, which this one
            must not lose either.
    """

    proposal: ProposalBase
    weights: tuple[str, ...]
    facts: Mapping[str, object]
    ways: Callable[[], tuple[Way, Way]]
    rival: Contest | None = None

    def text(self) -> str:
        """What competes: `vnm_linear on 64 x 1024 to 2048, 128:16:64x16`."""
        facts = self.facts
        sizes = f"{facts['tokens']} x {facts['inputs']} to {facts['outputs']}"
        return f"{facts['op']} on {sizes}, {facts['pattern']}"


def fight(contest: Contest, device: str, objective: str, frozen: bool) -> Ratio:
    """Time both ways: of a forward pass, or with the backward pass where that is the objective.

    `frozen` says that weights do not train, on which the way of a kernel may depend.
    """
    ways = contest.ways()
    training = objective == "training"
    if training or not frozen:
        for leaf in (leaf for way in ways for leaf in way.leaves):
            leaf.requires_grad_()
    present, kernel = (_run(way, training) for way in ways)
    if training:
        return duel(present, kernel, device=device)
    with torch.no_grad():
        return duel(present, kernel, device=device)


def _run(way: Way, training: bool) -> Run:
    if not training:
        return way.run

    def step() -> object:
        out = way.run()
        tensors = [out] if isinstance(out, Tensor) else list(out)
        return torch.autograd.grad(tensors, way.leaves, tensors)

    return step
