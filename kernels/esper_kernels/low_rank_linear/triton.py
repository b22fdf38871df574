"""The op on a GPU, see `gpu.low_rank`: both products in one launch.

What is between them, (M, r) in float32, stays in L2. The gradients are four dense products, which
the library multiplies.
"""

from __future__ import annotations

from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, low_rank
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose, properties


def problem(x: Tensor, down: Tensor, up: Tensor) -> Problem:
    """What the config of `forward` is chosen by."""
    return Problem("low_rank_linear", len(x), len(up), x.shape[1], x.dtype, f"rank {len(down)}")


def forward(
    x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, config: Config | None = None
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    shipped = configs.by_width(x.dtype, configs.LOW_RANK_32, configs.LOW_RANK_16)
    config = config or choose(problem(x, down, up), shipped, x.device)
    # One program for each multiprocessor: those surely run together, as they must to wait.
    *_, processors = properties(x.device)
    at_once = x.device.type == "cuda"
    return finish(low_rank.launches(x, down, up, bias, processors, config, at_once=at_once))
