"""The op on a CPU: `vnm_linear`, whose pieces of the weight become floating as they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.int8 import rescaled
from esper_kernels.precision import unscaled_type
from esper_kernels.vnm_linear import cpu as floating


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`.

    float16 could overflow before it is scaled, so it is computed in float32.
    """
    wide = x.to(unscaled_type(x.dtype))
    product = floating.forward(wide, values, index, None, rows, run)
    return rescaled(product, scale, bias, x.dtype)


def backward_x(
    grad: Tensor, values: Tensor, scale: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    scaled = grad.to(wide) * scale
    return floating.backward_x(scaled, values, index, rows, run, inputs).to(grad.dtype)
