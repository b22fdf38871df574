"""On a CPU, the inputs that groups of rows read, gathered in pieces that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

# Second-level cache in bytes, about. Pieces of 1 to 4 MiB differ by less than their noise; without
# pieces, many inputs at half density take twice the time (vnm_linear/README.md).
_PIECE = 2 << 20


def whole_runs(x: Tensor, run: int) -> Tensor:
    """x (M, K) with zeros behind the last column, where the last run is shorter."""
    short = -x.shape[1] % run
    return functional.pad(x, (0, short)) if short else x


def pieces(groups: int, size: int) -> Iterator[slice]:
    """Slices of groups that together gather about a cache of inputs; a group takes `size` bytes."""
    step = max(1, _PIECE // max(1, size))
    for first in range(0, groups, step):
        yield slice(first, min(first + step, groups))


def gather_rows(x: Tensor, index: Tensor, run: int) -> Tensor:
    """x (M, K) at the runs of n groups (n, kept), as (n, M, kept * run)."""
    if run > 1:
        x = x.view(len(x), -1, run)
    return x.index_select(1, index.flatten()).view(len(x), len(index), -1).transpose(0, 1)


def gather_columns(xt: Tensor, index: Tensor, run: int) -> Tensor:
    """x^T (K, M) at the runs of n groups (n, kept), as (n, kept * run, M)."""
    samples = xt.shape[1]
    runs = xt.view(-1, run * samples).index_select(0, index.flatten())
    return runs.view(len(index), -1, samples)
