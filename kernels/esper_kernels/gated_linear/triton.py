"""The op on a GPU, see `gpu.gated`: the products of both weights and what follows in one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, gated
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose
from esper_kernels.vnm_linear.triton import pattern


def problem(
    x: Tensor, gate: Tensor, gate_index: Tensor | None, rows: int | None, run: int | None
) -> Problem:
    """What the config of `forward` is chosen by."""
    kind, group = "dense", None
    if gate_index is not None and rows is not None and run is not None:
        kind, group = pattern(gate_index, rows, run), rows
    if gate.dtype == torch.int8:
        kind += " int8"
    return Problem("gated_linear", len(x), len(gate), x.shape[1], x.dtype, kind, group)


def shipped(x: Tensor, gate: Tensor) -> tuple[Config, ...]:
    """The configs for a dtype of x and of the weights."""
    if gate.dtype == torch.int8:
        return configs.by_width(x.dtype, configs.GATED_8_32, configs.GATED_8)
    return configs.by_width(x.dtype, configs.GATED_32, configs.GATED_16)


def forward(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_scale: Tensor | None,
    up_scale: Tensor | None,
    gate_index: Tensor | None,
    up_index: Tensor | None,
    activation: str,
    rows: int | None,
    run: int | None,
    config: Config | None = None,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    config = config or choose(problem(x, gate, gate_index, rows, run), shipped(x, gate), x.device)
    return finish(
        gated.launches(
            x,
            gate,
            up,
            gate_scale,
            up_scale,
            gate_index,
            up_index,
            activation,
            rows,
            run or 1,
            config,
        )
    )
