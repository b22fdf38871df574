"""What training costs, in multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from esper.ir.model import Model

_TRAINING = 3  # a step costs about three forward passes


class CostMeter:
    """Adds up what training costs; a structure is counted once."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.per_step = 0.0
        self._key: object = None

    def step(self, model: Model, inputs: torch.Tensor) -> None:
        """One more step on a batch like this."""
        from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

        key = (len(model.history), tuple(inputs.shape))
        if key != self._key:
            # What is only counted draws no random numbers from those of training.
            drawn = torch.random.fork_rng(devices=[])
            with drawn, FlopCounterMode(display=False) as counter, torch.no_grad():
                model(inputs)
            self._key, self.per_step = key, _TRAINING * counter.get_total_flops() / 2e9
        self.spent += self.per_step

    def state_dict(self) -> dict[str, Any]:
        """What was spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.spent, self._key = float(state["spent"]), None
