"""Small hosts of the three layouts, traced once; tests change copies."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import esper
from esper.ir.model import Model


class Vectors(nn.Module):
    """Two blocks in a row, a marker before them; [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.mark = esper.Slot()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8)),
            nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 8)),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(torch.relu(self.mark(self.stem(x)))))
        return logits


class Tokens(nn.Module):
    """A residual branch over embedded tokens; [B, T, 8] with both dynamic."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mark = esper.Slot()
        self.block = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mark(self.embed(ids))
        logits: Tensor = self.head(x + self.block(x))
        return logits


class Images(nn.Module):
    """Convolutions with batch norm; [B, 8, 5, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x)).mean((2, 3)))
        return logits


#: Host -> a slot in it.
SLOTS = {
    "vectors": "slot:layers.0.out",
    "tokens": "slot:block.out",
    "images": "slot:block.out",
}


@cache
def _traced(name: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "tokens":
            example = torch.randint(0, 11, (2, 5))
            return esper.trace(Tokens().double(), (example,), dynamic={"ids": [1]})
        if name == "images":
            return esper.trace(Images().double(), (torch.randn(2, 3, 5, 5).double(),))
        return esper.trace(Vectors().double(), (torch.randn(2, 6).double(),))


def host(name: str) -> Model:
    """A copy of a traced host, in training mode and float64, its IDs given out."""
    model = _traced(name)
    _ = model.anatomy.axes, model.anatomy.phages
    return copy.deepcopy(model)


def inputs(name: str) -> tuple[Any, ...]:
    """Other sizes than those traced."""
    generator = torch.Generator().manual_seed(1)
    if name == "tokens":
        return (torch.randint(0, 11, (3, 7), generator=generator),)
    if name == "images":
        return (torch.randn(3, 3, 5, 5, generator=generator, dtype=torch.float64),)
    return (torch.randn(4, 6, generator=generator, dtype=torch.float64),)
