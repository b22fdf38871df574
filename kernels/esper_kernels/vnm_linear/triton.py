"""The op on a GPU, see `gpu.linear` and its derivatives `gpu.transposed`, `gpu.masked_gradient`.

Which columns a group of outputs reads is known from one number for each run, so with runs of 8
inputs and more x is copied 16 bytes at a time, as a dense product's would be, and what is left out
is neither read nor multiplied. Sums are in float32.
"""

from __future__ import annotations

from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, linear, masked_gradient, transposed
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose


def pattern(index: Tensor, rows: int, run: int) -> str:
    """The text of a pattern in `Problem`s: outputs of a group, inputs of a run, runs kept."""
    return f"{rows}x{run}:{index.shape[1]}"


def problem(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Problem:
    """What the config of `forward` is chosen by."""
    return Problem(
        "vnm_linear", len(x), len(values), x.shape[1], x.dtype, pattern(index, rows, run), rows
    )


def forward(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
    config: Config | None = None,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    shipped = configs.by_width(x.dtype, configs.LINEAR_32, configs.LINEAR_16)
    config = config or choose(problem(x, values, index, rows, run), shipped, x.device)
    return finish(linear.launches(x, values, index, None, bias, rows, run, config))


def backward_x(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    rows: int,
    run: int,
    inputs: int,
    config: Config | None = None,
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`."""
    return times_weight("vnm_linear", grad, values, index, None, rows, run, inputs, config)


def times_weight(
    op: str,
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    scale: Tensor | None,
    rows: int,
    run: int,
    inputs: int,
    config: Config | None,
) -> Tensor:
    """The gradient of x where the weight is sparse in runs, scaled by rows or not."""
    (tokens, outputs), kind = grad.shape, pattern(index, rows, run)
    config = config or choose(
        Problem(f"{op}_backward_x", tokens, inputs, outputs, grad.dtype, kind),
        configs.by_width(grad.dtype, configs.TRANSPOSED_32, configs.TRANSPOSED_16),
        grad.device,
    )
    return finish(transposed.launches(grad, values, index, scale, rows, run, inputs, config))


def backward_values(
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    rows: int,
    run: int,
    config: Config | None = None,
) -> Tensor:
    """(M, N), (M, K) to (N, kept * run), see `reference.backward_values`."""
    (tokens, outputs), packed = grad.shape, index.shape[1] * run
    kind = pattern(index, rows, run)
    config = config or choose(
        Problem("vnm_linear_backward_values", packed, outputs, tokens, grad.dtype, kind, rows),
        configs.by_width(grad.dtype, configs.GRADIENT_32, configs.GRADIENT_16),
        grad.device,
    )
    return finish(masked_gradient.launches(grad, x, index, rows, run, config))
