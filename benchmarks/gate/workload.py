"""Models for measuring the gate itself: two networks, two shapes each, and ballast.

A true change is made, not assumed: the baseline is the network plus a matrix product with zeros,
one element of which is added to the output; the candidate is the network without it. Its size sets
the ratio, a long run establishes what that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import esper
from examples import fashion_mnist, minilm

Call = tuple[tuple[Any, ...], dict[str, Any]]
WIDTH = 64


class Ballasted(nn.Module):
    """`inner` with a product of [rows, 64] and [64, 64] on the side; none for `rows` = 0."""

    def __init__(self, inner: nn.Module, rows: int) -> None:
        super().__init__()
        self.inner = inner
        self.rows = rows
        self.register_buffer("left", torch.randn(max(rows, 1), WIDTH))
        self.register_buffer("right", torch.zeros(WIDTH, WIDTH))

    def burdened(self, output: torch.Tensor) -> torch.Tensor:
        if not self.rows:
            return output
        left, right = self.get_buffer("left"), self.get_buffer("right")
        return output + (left @ right)[0, 0]


class Encoder(Ballasted):
    """MiniLM: token ids and mask [batch, length] to hidden states."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch, length, 384]."""
        found = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        return self.burdened(found.last_hidden_state)


class Images(Ballasted):
    """A residual network: images to logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [batch, 10]."""
        return self.burdened(self.inner(images))


@dataclass(frozen=True)
class Cell:
    """One network on one shape."""

    model: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.model}-{'x'.join(map(str, self.shape))}"

    def call(self) -> Call:
        """Random inputs of this shape."""
        generator = torch.Generator().manual_seed(1)
        if self.model == "minilm":
            ids = torch.randint(1000, 30000, self.shape, generator=generator)
            return (ids, torch.ones_like(ids)), {}
        return (torch.randn(self.shape, generator=generator),), {}

    def build(self, rows: int) -> esper.Model:
        """The traced network with so many rows of ballast."""
        make: Callable[[], nn.Module] = {
            "minilm": minilm.factory,
            "cnn": fashion_mnist.architecture,
        }[self.model]
        wrapper = {"minilm": Encoder, "cnn": Images}[self.model]
        torch.manual_seed(0)
        args, kwargs = self.call()
        return esper.trace(wrapper(make(), rows).eval(), args, kwargs)


CELLS = (
    Cell("cnn", (1, 1, 28, 28)),
    Cell("cnn", (16, 1, 28, 28)),
    Cell("minilm", (1, 16)),
    Cell("minilm", (2, 32)),
)
