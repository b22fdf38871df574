"""The op on a GPU, see `gpu.linear`: weights sparse in runs whose entries are int8.

A weight takes `density` bytes, a quarter of one in 16 bits at 50%, and int8 is what decoding with
sparse weights has to be compared with.
"""

from __future__ import annotations

from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, linear
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose
from esper_kernels.vnm_linear.triton import pattern, times_weight


def problem(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Problem:
    """What the config of `forward` is chosen by."""
    kind = pattern(index, rows, run)
    return Problem("vnm_int8_linear", len(x), len(values), x.shape[1], x.dtype, kind, rows)


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
    config: Config | None = None,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    shipped = configs.by_width(x.dtype, configs.LINEAR_8_32, configs.LINEAR_8)
    config = config or choose(problem(x, values, index, rows, run), shipped, x.device)
    return finish(linear.launches(x, values, index, scale, bias, rows, run, config))


def backward_x(
    grad: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    rows: int,
    run: int,
    inputs: int,
    config: Config | None = None,
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`."""
    return times_weight("vnm_int8_linear", grad, values, index, scale, rows, run, inputs, config)
