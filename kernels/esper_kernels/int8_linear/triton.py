"""The op on a GPU, see `gpu.linear`.

With few tokens the time is that of reading the weights, of which there are half as many bytes as in
16 bits. They become floating in registers, exactly; the scale of an output is applied to its sum.
"""

from __future__ import annotations

from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, linear, transposed
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose


def problem(x: Tensor, values: Tensor) -> Problem:
    """What the config of `forward` is chosen by."""
    return Problem("int8_linear", len(x), len(values), x.shape[1], x.dtype)


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    config: Config | None = None,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    shipped = configs.by_width(x.dtype, configs.LINEAR_8_32, configs.LINEAR_8)
    config = config or choose(problem(x, values), shipped, x.device)
    return finish(linear.launches(x, values, None, scale, bias, None, 1, config))


def backward_x(grad: Tensor, values: Tensor, scale: Tensor, config: Config | None = None) -> Tensor:
    """(M, N) to (M, K), see `reference.backward_x`."""
    (tokens, outputs), inputs = grad.shape, values.shape[1]
    config = config or choose(
        Problem("int8_linear_backward_x", tokens, inputs, outputs, grad.dtype),
        configs.by_width(grad.dtype, configs.TRANSPOSED_32, configs.TRANSPOSED_16),
        grad.device,
    )
    return finish(transposed.launches(grad, values, None, scale, None, 1, inputs, config))
