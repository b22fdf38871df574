"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, kv_heads: int, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x W^T + bias, cut into q, k and v and their heads; sums in at least float32, rounded once.

    (B, S, K) to (B, heads, S, head_size) and twice (B, kv_heads, S, head_size).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    fused = functional.linear(
        x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    ).to(x.dtype)
    every = torch.unflatten(fused, -1, (heads + 2 * kv_heads, head_size)).transpose(1, 2)
    q, k, v = torch.split(every, [heads, kv_heads, kv_heads], 1)
    return q.contiguous(), k.contiguous(), v.contiguous()
