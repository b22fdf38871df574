"""The op by way of the dense weight: all of it on a CPU, which has no 2:4; gradients anywhere.

The weight's transpose is not 2:4 sparse, so no instruction multiplies by it either, and a gradient
of x has to unpack the weight on a GPU, too.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from esper_kernels.sparse24 import gather, unpack


def forward(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    """(M, inputs) to (M, outputs), see `reference.forward`."""
    return functional.linear(x, unpack(values, metadata, outputs, inputs), bias)


def backward_x(grad: Tensor, values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    """(M, outputs) to (M, inputs), see `reference.backward_x`."""
    return grad @ unpack(values, metadata, outputs, inputs)


def backward_values(grad: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    """(M, outputs), (M, inputs) to the shape of `values`, see `reference.backward_values`."""
    return gather(grad.T @ x, metadata)
