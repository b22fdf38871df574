"""The op by way of the dense weight: all of it on a CPU, which has nothing for 2:4, and gradients.

The weight's transpose is not 2:4 sparse, so no instruction multiplies by it either; a gradient of x
has to unpack the weight wherever it is computed.
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
