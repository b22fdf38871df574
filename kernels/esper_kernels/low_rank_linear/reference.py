"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def forward(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    """(x down^T) up^T + bias with sums in at least float32, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    hidden = functional.linear(x.to(wide), down.to(wide))
    out = functional.linear(hidden, up.to(wide), None if bias is None else bias.to(wide))
    return out.to(x.dtype)
