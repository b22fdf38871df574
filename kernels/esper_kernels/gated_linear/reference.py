"""What the op computes, in its plainest form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels.activations import ACTIVATIONS
from esper_kernels.run_sparse import unpack


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
) -> Tensor:
    """act(x gate^T) * (x up^T) with sums in at least float32, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)

    def product(weight: Tensor, scale: Tensor | None, index: Tensor | None) -> Tensor:
        if index is not None and rows is not None and run is not None:
            weight = unpack(weight, index, rows, run, x.shape[-1])
        out = functional.linear(x.to(wide), weight.to(wide))
        return out if scale is None else out * scale

    act = ACTIVATIONS[activation].forward
    return (act(product(gate, gate_scale, gate_index)) * product(up, up_scale, up_index)).to(
        x.dtype
    )
