"""The op on a GPU, see `gpu.projections`: one dense product that stores by head.

The gradients are dense products, which the library multiplies.
"""

from __future__ import annotations

import math

from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, projections
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose


def problem(x: Tensor, weight: Tensor, heads: int, kv_heads: int, head_size: int) -> Problem:
    """What the config of `forward` is chosen by."""
    return Problem(
        "attention_projections",
        x.shape[0] * x.shape[1],
        len(weight),
        x.shape[2],
        x.dtype,
        f"{heads} of {head_size}, {kv_heads} for keys",
        math.gcd(heads, kv_heads) * head_size,
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    head_size: int,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, S, K) to three of (B, heads, S, head_size), see `reference.forward`."""
    shipped = configs.by_width(x.dtype, configs.PROJECTIONS_32, configs.PROJECTIONS_16)
    config = config or choose(problem(x, weight, heads, kv_heads, head_size), shipped, x.device)
    return finish(projections.launches(x, weight, bias, heads, kv_heads, head_size, config))
