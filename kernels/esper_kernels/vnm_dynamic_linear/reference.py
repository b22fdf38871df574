"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.int8 import quantize
from esper_kernels.run_sparse import unpack


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    """(r(x) W^T) * (scales of x) * scale + bias, r being the rounding of each row to int8.

    Sums of integers are exact; what follows is in at least float32 and rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    integers, own = quantize(x.reshape(-1, x.shape[-1]))
    weight = unpack(values, index, rows, run, x.shape[-1])
    out = (integers.double() @ weight.double().t()).to(wide) * own[:, None] * scale
    out = out if bias is None else out + bias
    return out.to(x.dtype).reshape(*x.shape[:-1], len(values))
