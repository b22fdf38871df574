"""What a case of `tests.ir.test_rules` is, and helpers to write one in a line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Body(nn.Module):
    """Layers by name and a function of them: `fn(self, x)`."""

    def __init__(self, fn: Callable[..., Any], layers: dict[str, nn.Module | Tensor]) -> None:
        super().__init__()
        self.fn = fn
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.fn(self, x)


Layers = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A module, its input, and what is expected of its axes of more than one unit.

    Attributes:
        fn, layers: the module, see `Body`.
        x: makes the input.
        cuttable: ID without `axis:` -> size, of every axis that may be cut.
        frozen: ID -> reason, of every other one but those frozen as graph inputs or outputs.
        lossy: which cuttable axes share statistics.
    """

    fn: Callable[[Any, Tensor], Any]
    layers: Layers
    x: Callable[[], Tensor]
    cuttable: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)
    lossy: tuple[str, ...] = ()


def rows(width: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, width)


def tokens(length: int = 5, width: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, length, width)


def image(channels: int = 2, size: int = 6) -> Callable[[], Tensor]:
    return lambda: torch.randn(3, channels, size, size)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def linears(*widths: int, **more: Any) -> Layers:
    """`l0`, `l1`, ... from width to width."""
    return lambda: {
        **{f"l{i}": nn.Linear(a, b) for i, (a, b) in enumerate(itertools.pairwise(widths))},
        **{name: make() for name, make in more.items()},
    }


def between(op: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """l1(op(l0(x)))."""
    return lambda m, x: m.l1(op(m.l0(x)))
