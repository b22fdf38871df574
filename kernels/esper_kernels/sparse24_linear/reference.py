"""What the op computes, in its plainest form."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from esper_kernels.sparse24 import gather, unpack


def forward(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    """x W^T + bias with sums in float32, rounded once: (..., inputs) to (..., outputs)."""
    weight = unpack(values, metadata, outputs, inputs).float()
    return functional.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


def backward_x(grad: Tensor, values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    """Gradient of x, grad W: (M, outputs) to (M, inputs)."""
    return (grad.float() @ unpack(values, metadata, outputs, inputs).float()).to(grad.dtype)


def backward_values(grad: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    """Gradient of the kept weights, grad^T x where they are, in their order: that of `values`."""
    return gather(grad.float().T @ x.float(), metadata).to(grad.dtype)
