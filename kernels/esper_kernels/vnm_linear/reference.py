"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels.run_sparse import columns, unpack


def forward(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    """x W^T + bias with sums in at least float32, rounded once: (..., K) to (..., N)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = unpack(values.to(wide), index, rows, run, x.shape[-1])
    return functional.linear(x.to(wide), weight, None if bias is None else bias.to(wide)).to(
        x.dtype
    )


def backward_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """Gradient of x, grad W: (M, N) to (M, inputs)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return (grad.to(wide) @ unpack(values.to(wide), index, rows, run, inputs)).to(grad.dtype)


def backward_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """Gradient of the kept weights, grad^T x where they are: (M, N), (M, K) to (N, kept * run).

    Zero for columns beyond the last.
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    dense = grad.to(wide).T @ x.to(wide)
    padded = functional.pad(dense, (0, -x.shape[1] % run))
    group = torch.arange(grad.shape[1], device=grad.device) // rows
    return padded.gather(1, columns(index, run)[group]).to(grad.dtype)
