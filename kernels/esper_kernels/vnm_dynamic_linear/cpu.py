"""The op on a CPU: products of integers, group by group, since the library has no batch of them.

The weight is the first operand, so that it is read as it lies; with many samples, the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.gathering import gather_columns, gather_rows, whole_runs
from esper_kernels.int8 import quantize, rescaled

_MANY = 128  # samples from which turning inputs and outputs costs more


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
    integers, own = quantize(whole_runs(x, run))
    by_samples, wide = len(x) >= _MANY, torch.promote_types(x.dtype, torch.float32)
    xt = integers if by_samples else integers.t().contiguous()
    own = own.to(wide).unsqueeze(1)
    out = x.new_empty(len(x), len(values), dtype=wide)
    groups = zip(
        torch.split(values, rows), torch.split(out, rows, 1), torch.split(index, 1), strict=True
    )
    for weight, onto, kept in groups:
        if by_samples:
            product = torch._int_mm(gather_rows(integers, kept, run)[0], weight.t())
        else:
            product = torch._int_mm(weight, gather_columns(xt, kept, run)[0]).t()
        torch.mul(product, own, out=onto)
    return rescaled(out, scale, bias, x.dtype)
