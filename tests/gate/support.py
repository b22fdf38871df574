"""Small models, simulated samples and fakes for the gate's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from esper.gate.sampling import Effort
from esper.gate.statistics import Samples

QUICK = Effort(
    seconds=0.02, warmup_seconds=0.0, visit_seconds=1e-5, min_rounds=4, max_rounds=6, timeout=120.0
)
"""Enough to exercise the machinery; nothing is concluded about time."""


class Two(nn.Module):
    """Two inputs of which one is passed by keyword, two outputs in a dict."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.second = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """`x` [batch, 4], `scale` [batch, 1]."""
        hidden = torch.relu(self.first(x)) * scale
        return {"hidden": hidden, "logits": self.second(hidden)}


def two_call(batch: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of `Two`."""
    return (torch.randn(batch, 4),), {"scale": torch.rand(batch, 1)}


def simulated(
    processes: int, effect: float = 0.0, rounds: int = 24, seed: int = 0, noise: float = 0.01
) -> Samples:
    """Samples where B is faster by `effect` (0.05: 5%), with drift, offsets and spikes."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(processes):
        drift = rng.normal(0, 0.1, (rounds, 1)).cumsum(axis=0) * 0.1
        own = rng.normal(0, noise, (rounds, 3)) + rng.normal(0, 0.002, 3)
        spikes = (rng.random((rounds, 3)) < 0.1) * rng.exponential(0.3, (rounds, 3))
        faster = np.array([0.0, 0.0, np.log1p(effect)])
        blocks.append(np.log(0.02) + drift + own + spikes - faster)
    return Samples(tuple(blocks))
