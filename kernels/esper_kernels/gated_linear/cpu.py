"""The op on a CPU: the two products, each by the kernel of its weight's format."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from esper_kernels.activations import ACTIVATIONS
from esper_kernels.int8_linear import cpu as int8
from esper_kernels.vnm_int8_linear import cpu as vnm_int8
from esper_kernels.vnm_linear import cpu as vnm


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
    """(M, K) to (M, N), see `reference.forward`; both products are rounded to the dtype of x."""
    first = _product(x, gate, gate_scale, gate_index, rows, run)
    second = _product(x, up, up_scale, up_index, rows, run)
    return ACTIVATIONS[activation].forward(first).mul_(second)


def _product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    index: Tensor | None,
    rows: int | None,
    run: int | None,
) -> Tensor:
    if index is not None and rows is not None and run is not None:
        if scale is None:
            return vnm.forward(x, weight, index, None, rows, run)
        return vnm_int8.forward(x, weight, scale, index, None, rows, run)
    if scale is None:
        return functional.linear(x, weight)
    return int8.forward(x, weight, scale, None)
