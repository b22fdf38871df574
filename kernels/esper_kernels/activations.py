"""Activations of gated layers, and what their gradients are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A function of each number.

    Attributes:
        forward: x to act(x).
        backward: (gradient of act(x), x) to the gradient of x; differentiable itself.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Written out, as `aten.silu_backward` has no derivative."""
    gate = torch.sigmoid(x)
    return grad * gate * (1 + x * (1 - gate))


ACTIVATIONS = {
    "silu": Activation(functional.silu, _silu_backward),
    "gelu": Activation(functional.gelu, aten.gelu_backward),
    "gelu_tanh": Activation(
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
    ),
    "relu": Activation(torch.relu, lambda grad, x: aten.threshold_backward(grad, x, 0)),
    "sigmoid": Activation(
        torch.sigmoid, lambda grad, x: aten.sigmoid_backward(grad, torch.sigmoid(x))
    ),
}
