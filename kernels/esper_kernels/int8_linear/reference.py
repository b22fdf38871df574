"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def forward(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(x values^T) * scale + bias with sums in at least float32, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = functional.linear(x.to(wide), values.to(wide)) * scale
    return (out if bias is None else out + bias).to(x.dtype)


def backward_x(grad: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Gradient of x, (grad * scale) values: (M, N) to (M, K)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return ((grad.to(wide) * scale) @ values.to(wide)).to(grad.dtype)
