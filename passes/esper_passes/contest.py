"""A kernel against the ops that it would replace, on random data of the example's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.propose import ProposalBase
from esper_passes.duel import Ratio, Run, duel

Way = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments


@dataclass(frozen=True)
class Contest:
    """One place that could be lowered.

    Attributes:
        proposal: that lowers it.
        weight: name of its weight, for people and globs.
        facts: op, sizes, dtype and pattern: what the outcome hangs on.
        ways: makes the present way and that of the kernel, on random data.
    """

    proposal: ProposalBase
    weight: str
    facts: Mapping[str, object]
    ways: Callable[[], tuple[Way, Way]]


def fight(contest: Contest, device: str, objective: str) -> Ratio:
    """Time both ways: of a forward pass, or with the backward pass where that is the objective."""
    present, kernel = (_run(way, objective == "training") for way in contest.ways())
    if objective == "training":
        return duel(present, kernel, device=device)
    with torch.no_grad():
        return duel(present, kernel, device=device)


def _run(way: Way, training: bool) -> Run:
    function, arguments = way
    if not training:
        return lambda: function(*arguments)
    leaves = [
        value.requires_grad_()
        for value in arguments
        if isinstance(value, Tensor) and value.is_floating_point()
    ]

    def step() -> object:
        out = function(*arguments)
        tensors = [out] if isinstance(out, Tensor) else list(out)
        return torch.autograd.grad(tensors, leaves, tensors)

    return step
