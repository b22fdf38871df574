"""Short distillation: tensors move until outputs come as close to given ones as a few steps allow.

Hinton et al., arXiv:1503.02531, with the squared distance of values in place of soft labels, as in
FitNets (Romero et al., arXiv:1412.6550), so that it needs no labels and no idea what outputs mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Batch number and tensors by name -> values to bring close to the targets.
Forward = Callable[[int, Mapping[str, Tensor]], Sequence[Tensor]]
_LOOKS = 10  # how often held-out batches are looked at
_TINY = 1e-30


@dataclass(frozen=True)
class Fitted:
    """The best tensors that were seen on held-out batches.

    Attributes:
        tensors: by name; those of the start where no step was better.
        before, after: relative distance on held-out batches, ||y' - y|| / ||y||.
        step: after how many steps they were seen.
    """

    tensors: dict[str, Tensor]
    before: float
    after: float
    step: int


def held_out(count: int, share: float) -> int:
    """How many of so many batches, the last ones, only judge: at least one, never all."""
    return min(count - 1, max(1, round(count * share)))


def fit(
    forward: Forward,
    targets: Sequence[Sequence[Tensor]],
    start: Mapping[str, Tensor],
    *,
    judged: int,
    held: int,
    steps: int,
    lr: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
    """Adam on the sum of relative squared distances, one batch a step, the rate falling to zero.

    Args:
        forward: computes the values of a batch.
        targets: of every batch.
        start: floating tensors that may move; not changed.
        judged: how many of the values, the first ones, count on held-out batches.
        held: how many batches, the last ones, are held out.
        steps: of Adam.
        lr: its first learning rate.
        progress: called with steps done and all steps.
    """
    moving = {name: t.detach().clone().requires_grad_() for name, t in start.items()}
    count = len(targets) - held
    kept = range(count, len(targets))
    before = best = _distance(forward, targets, moving, kept, judged)
    found, at = {name: t.detach().clone() for name, t in moving.items()}, 0
    optimizer = torch.optim.Adam(moving.values(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(1, steps + 1):
        index = (step - 1) % count
        with torch.enable_grad():
            values = forward(index, moving)
            loss = _loss(values, targets[index])
            gradients = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
        for tensor, gradient in zip(moving.values(), gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
        schedule.step()
        if step % max(1, steps // _LOOKS) == 0 or step == steps:
            distance = _distance(forward, targets, moving, kept, judged)
            if distance < best:
                best, at = distance, step
                found = {name: t.detach().clone() for name, t in moving.items()}
            progress(step, steps)
    return Fitted(found, before, best, at)


def _loss(values: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    parts = [
        (value - target).square().sum() / target.square().sum().clamp_min(_TINY)
        for value, target in zip(values, targets, strict=True)
    ]
    return torch.stack(parts).sum()


def _distance(
    forward: Forward,
    targets: Sequence[Sequence[Tensor]],
    tensors: Mapping[str, Tensor],
    batches: Sequence[int],
    judged: int,
) -> float:
    """Over all judged values of these batches together; infinite where one is not finite."""
    error = energy = 0.0
    with torch.no_grad():
        for index in batches:
            values = forward(index, tensors)[:judged]
            for value, target in zip(values, targets[index][:judged], strict=True):
                error += float((value - target).double().square().sum())
                energy += float(target.double().square().sum())
    distance = (error / max(energy, _TINY)) ** 0.5
    return distance if distance == distance else float("inf")
