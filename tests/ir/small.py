"""Tiny models for tests of the IR, traced once a session."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import esper
from esper.ir.model import Model


class Perceptron(nn.Module):
    """Embedding, two linears, dropout, head tied to the embedding, a hidden buffer."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("offset", torch.ones(6), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(ids) + self.offset
        hidden = hidden + self.drop(self.down(torch.relu(self.up(hidden))))
        return {"logits": self.head(hidden), "hidden": hidden}


class Convolutions(nn.Module):
    """Convolution, batch norm, flatten through a literal view, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 5 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(x)))
        flat: Tensor = self.fc(hidden.view(-1, 4 * 5 * 5))
        return flat


def perceptron_inputs() -> tuple[Tensor]:
    """Token ids, int64 [3, 5]."""
    return (torch.arange(15).reshape(3, 5) % 11,)


def convolution_inputs() -> tuple[Tensor]:
    """An image batch, float32 [2, 3, 5, 5]."""
    return (torch.linspace(-1, 1, 150).reshape(2, 3, 5, 5),)


@cache
def _traced(kind: type[nn.Module], inputs: Any) -> Model:
    torch.manual_seed(0)
    return esper.trace(kind().eval(), inputs())


def perceptron() -> Model:
    """A fresh copy of the traced perceptron, in evaluation mode."""
    return copy.deepcopy(_traced(Perceptron, perceptron_inputs))


def convolutions() -> Model:
    """A fresh copy of the traced convolutional network, in evaluation mode."""
    return copy.deepcopy(_traced(Convolutions, convolution_inputs))
