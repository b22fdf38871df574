"""The op on a CPU: for each group of rows, gather its inputs and multiply.

Sums are in the dtype that oneDNN or MKL use for x (float32 for bfloat16 and float16).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels.run_sparse import columns


def _whole_runs(x: Tensor, run: int) -> Tensor:
    """x with zeros behind the last column, where the last run is shorter."""
    short = -x.shape[1] % run
    return functional.pad(x, (0, short)) if short else x


def forward(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    whole, out = _whole_runs(x, run), x.new_empty(len(x), len(values))
    for group, kept in enumerate(columns(index, run)):
        part = slice(group * rows, (group + 1) * rows)
        own = None if bias is None else bias[part]
        out[:, part] = functional.linear(whole.index_select(1, kept), values[part], own)
    return out


def backward_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`."""
    width = -(-inputs // run) * run
    total = grad.new_zeros(len(grad), width)
    for group, kept in enumerate(columns(index, run)):
        part = slice(group * rows, (group + 1) * rows)
        total.index_add_(1, kept, grad[:, part] @ values[part])
    return total[:, :inputs].contiguous()


def backward_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """(M, N), (M, K) to (N, kept * run), see `reference.backward_values`."""
    whole = _whole_runs(x, run)
    width = index.shape[1] * run
    out = grad.new_empty(grad.shape[1], width)
    for group, kept in enumerate(columns(index, run)):
        part = slice(group * rows, (group + 1) * rows)
        torch.mm(grad[:, part].T, whole.index_select(1, kept), out=out[part])
    return out
