"""Code that `torch.export` keeps as graphs of their own: loops, switched-off gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch.utils.checkpoint import checkpoint

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import pattern, tokens


class ScannedCell(nn.Module):
    """A recurrent cell under `scan`; the classifier reads every state and the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.cell = nn.Linear(8, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(state: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.cell(state) + item)
            return state, state * 2

        start = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        last, states = scan(step, start, self.enter(x).transpose(0, 1))
        return self.out(states.transpose(0, 1)), self.out(last)


class MappedHeads(nn.Module):
    """One function mapped over the positions of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.scale = nn.Linear(8, 6), nn.Parameter(torch.ones(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        def each(item: Tensor, scale: Tensor) -> Tensor:
            return torch.relu(item) * scale

        over: Any = map_over  # its types are those of one operand
        return self.out(over(each, self.enter(x).transpose(0, 1), self.scale).transpose(0, 1))


class Switched(nn.Module):
    """A frozen teacher without gradients, a part with autocast off, and a checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = nn.Linear(8, 6), nn.Linear(8, 6)
        self.block = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            taught = torch.sigmoid(self.teacher(x))
        with torch.autocast("cpu", enabled=False):
            mixed = self.student(x) + taught
        return self.out(checkpoint(self.block, mixed, use_reentrant=False))


TABLE: tuple[Entry, ...] = (
    pattern("scanned_cell", ScannedCell, tokens(), reach={"neurons": 1}, fast=True),
    pattern("mapped_heads", MappedHeads, tokens(), reach={"neurons": 1}),
    pattern("switched", Switched, tokens(), reach={"neurons": 3}, fast=True),
)
