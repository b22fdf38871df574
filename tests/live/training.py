"""A small model in training, for the tests of live surgery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.propose import DropRegion, ProposalBase, PruneUnits


class Net(nn.Module):
    """A residual perceptron: enough for cuts, drops and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 10)
        self.block = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 10))
        self.norm = nn.BatchNorm1d(10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of three classes."""
        x = torch.relu(self.stem(x))
        x = x + self.block(x)
        logits: torch.Tensor = self.head(torch.relu(self.norm(x)))
        return logits


def traced(dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    module = Net().to(dtype)
    return esper.trace(module, (torch.randn(4, 6, dtype=dtype),))


def batch(
    generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 6, generator=generator, dtype=dtype)
    return x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long()


def step(
    model: Any, optimizer: torch.optim.Optimizer, inputs: tuple[torch.Tensor, torch.Tensor]
) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs[0]), inputs[1])
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())


CUT = PruneUnits(axis="axis:block.0/neurons", units=(1, 4, 7))
NARROW = PruneUnits(axis="axis:stem/neurons", units=(0, 3))
DROP = DropRegion(region="phage:block")

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}

__all__ = ["CUT", "DROP", "NARROW", "OPTIMIZERS", "Net", "ProposalBase", "batch", "step", "traced"]
