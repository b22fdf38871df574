"""What probes of the storyboards measure on: held-out batches, a loss, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from esper.agents import HeldOut
from esper.demo.data import Data
from esper.ecology.betting import Rule
from esper.live.probe import Loss

Batch = tuple[torch.Tensor, torch.Tensor]
_SWEPT = 128  # items of a sweep


def cross_entropy(model: Any, batch: Batch) -> torch.Tensor:
    """Mean over items, and over positions where there are several."""
    return functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def brier(model: Any, batch: Batch) -> torch.Tensor:
    """Mean squared distance of probabilities from the truth, 0 to 2 (Brier 1950).

    A classifier that is right about nearly all has a cross entropy that a few confident errors
    rule; this proper score is bounded, as the stopping rule of probes wishes.
    """
    probabilities: torch.Tensor = model(batch[0]).softmax(-1)
    truth = functional.one_hot(batch[1], probabilities.shape[-1])
    return (probabilities - truth).square().sum(-1).mean()


@dataclass(frozen=True)
class Probing:
    """How probes of one kind of data go.

    Attributes:
        size: of a batch: small where items are few, so that a probe can look often.
        loss: what is compared.
        spread: of the stopping rule: how many margins a batch may differ by, unclipped.
        most: batches that a probe may take.
    """

    size: int
    loss: Loss
    spread: float
    most: int

    def batches(self, data: Data) -> list[Batch]:
        """Of the part of the data that is there for probes."""
        inputs, labels = (torch.split(part, self.size) for part in data.probe)
        return list(zip(inputs, labels, strict=True))[: self.most]

    def swept(self, data: Data) -> list[Batch]:
        """The few that a sweep takes."""
        return self.batches(data)[: _SWEPT // self.size]

    def held_out(self, data: Data, margin: float) -> HeldOut:
        """For Emrakul; a mean change of the loss above the margin is harm."""
        rule = Rule(margin=margin, spread=self.spread, most=self.most)
        return HeldOut(self.batches(data), self.loss, rule)


PROBING: Mapping[str, Probing] = {
    "image": Probing(8, brier, 2.0, 64),
    "text": Probing(64, cross_entropy, 3.0, 24),
}
