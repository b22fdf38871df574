"""The op on a CPU: one product of the library, then each head's rows where attention reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, kv_heads: int, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S, K) to three of (B, heads, S, head_size), see `reference.forward`."""
    fused = torch.unflatten(functional.linear(x, weight, bias), -1, (-1, head_size))
    q, k, v = (
        part.clone(memory_format=torch.contiguous_format)  # three results share no memory
        for part in torch.split(fused.transpose(1, 2), [heads, kv_heads, kv_heads], 1)
    )
    return q, k, v
