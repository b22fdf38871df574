"""Learning-rate re-warm-up of single tensors, without touching groups or schedulers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Warmup:
    """Scales the updates of touched parameters from 1/steps to 1 over a number of steps.

    An update is linear in the learning rate for every optimizer that PyTorch ships, weight decay
    included, so moving only a part of the way is a smaller learning rate for that tensor alone.
    Costs a copy of each such tensor a step while it lasts, nothing afterwards.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._left: dict[torch.Tensor, tuple[int, int]] = {}  # parameter -> steps done, of
        self._before: dict[torch.Tensor, torch.Tensor] = {}
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._part)

    def start(self, parameters: Iterable[torch.Tensor], steps: int) -> None:
        """Begin, or begin again, for these parameters."""
        if steps > 0:
            self._left.update(dict.fromkeys(parameters, (0, steps)))

    def forget(self, parameters: Iterable[torch.Tensor]) -> None:
        """Parameters that are gone need no warm-up."""
        for parameter in parameters:
            self._left.pop(parameter, None)

    def active(self) -> dict[torch.Tensor, tuple[int, int]]:
        """Parameter -> (steps done, of how many)."""
        return dict(self._left)

    def assign(self, left: dict[torch.Tensor, tuple[int, int]]) -> None:
        """Put back what `active` returned."""
        self._left = dict(left)

    def _note(self, *_: Any) -> None:
        self._before = {parameter: parameter.detach().clone() for parameter in self._left}

    def _part(self, *_: Any) -> None:
        for parameter, before in self._before.items():
            done, steps = self._left[parameter]
            parameter.data.copy_(torch.lerp(before, parameter.detach(), (done + 1) / steps))
            if done + 1 >= steps:
                del self._left[parameter]
            else:
                self._left[parameter] = (done + 1, steps)
        self._before = {}
