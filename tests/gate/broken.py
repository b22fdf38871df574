"""An op that misbehaves on demand; measured processes import this module to have it."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

from esper.ir import codec

codec.trust("esper_gate_tests")


@torch.library.custom_op("esper_gate_tests::act", mutates_args=())
def act(x: torch.Tensor, how: str) -> torch.Tensor:
    """A copy of `x` after doing what `how` says."""
    if how == "raise":
        raise RuntimeError("boom on purpose")
    if how == "crash":
        os.write(2, b"about to crash: stack corrupted\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "sleep":
        time.sleep(600)
    if how == "pause":
        time.sleep(0.15)
    if how == "nan":
        return x * float("nan")
    if how == "random":
        return x + torch.rand_like(x)
    return x.clone()


@act.register_fake
def _(x: torch.Tensor, how: str) -> torch.Tensor:
    return torch.empty_like(x)


class Act(nn.Module):
    """A linear layer followed by the op."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [batch, 4] to the same shape."""
        out: torch.Tensor = act(self.linear(x), self.how)
        return out
