"""Symmetric int8 weights: integers from -127 to 127 and one scale for each output."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12  # what the largest element of a row of zeros is taken for


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) or packed (N, kept * run) as int8 of that shape and float32 scales (N,).

    The weight is about `values * scale[:, None]`: off by half a scale at most.
    """
    wide = weight.detach().float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min_(_LEAST).div_(127)
    # No quotient is over 127 by more than the rounding of two divisions.
    return (wide / scale).round_().to(torch.int8), scale.squeeze(1)


def rescaled(product: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """product * scale + bias in the wider dtype, rounded once to `dtype`; may reuse `product`."""
    inplace = product.dtype not in (torch.float16, torch.bfloat16)
    out = product.mul_(scale) if inplace else product * scale
    return (out if bias is None else out.add_(bias)).to(dtype)
