"""The op on a CPU: products of integers, the weight first, so that it is read as it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.gathering import gather_columns, whole_runs
from esper_kernels.int8 import quantize, rescaled


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    integers, own = quantize(x)
    xt = whole_runs(integers, run).t().contiguous()
    turned = x.new_empty(len(values), len(x), dtype=torch.int32)
    groups = zip(
        torch.split(values, rows), torch.split(turned, rows), torch.split(index, 1), strict=True
    )
    for weight, onto, kept in groups:
        torch._int_mm(weight, gather_columns(xt, kept, run)[0], out=onto)
    wide = torch.promote_types(x.dtype, torch.float32)
    product = turned.t().to(wide, memory_format=torch.contiguous_format).mul_(own.unsqueeze(1))
    return rescaled(product, scale, bias, x.dtype)
