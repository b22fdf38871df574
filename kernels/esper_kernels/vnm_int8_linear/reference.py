"""What the op computes, in its plainest form."""

from __future__ import annotations

from torch import Tensor

from esper_kernels.int8_linear import reference as dense
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
    """(x W^T) * scale + bias for W of integers, packed as `RunSparse`."""
    return dense.forward(x, unpack(values, index, rows, run, x.shape[-1]), scale, bias)


def backward_x(
    grad: Tensor, values: Tensor, scale: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """Gradient of x, (grad * scale) W: (M, N) to (M, inputs)."""
    return dense.backward_x(grad, unpack(values, index, rows, run, inputs), scale)
