"""On a CPU, the inputs that groups of rows read, gathered in pieces that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels.scratch import scratch

# Bytes gathered at once. Much less costs calls; over 32 MiB takes twice the time, since glibc then
# maps memory anew at each allocation (mallopt(3), M_MMAP_THRESHOLD).
_GATHERED = 16 << 20


def whole_runs(x: Tensor, run: int) -> Tensor:
    """x (M, K) with zeros behind the last column, where the last run is shorter."""
    short = -x.shape[1] % run
    return functional.pad(x, (0, short)) if short else x


def pieces(groups: int, size: int, most: int = _GATHERED) -> Iterator[slice]:
    """Slices of groups that take `most` bytes together, where each takes `size`; at least one."""
    step = max(1, most // max(1, size))
    for first in range(0, groups, step):
        yield slice(first, min(first + step, groups))


def samples_at_once(samples: int, size: int, most: int) -> Iterator[slice]:
    """Slices of samples, as equal as can be, that take `most` bytes, where each takes `size`."""
    parts = -(-samples * size // most)
    step = -(-samples // max(1, min(parts, samples)))
    for first in range(0, samples, step):
        yield slice(first, min(first + step, samples))


def gather_runs(x: Tensor, index: Tensor, run: int) -> Tensor:
    """x (M, K) at the runs of n groups (n, kept), as (M, n * kept * run); M at least 1.

    It may lie in `scratch`: the next call writes over it.
    """
    samples, inputs = x.shape
    onto = scratch((samples, index.numel(), run), x.dtype)
    runs = x.view(samples, inputs // run, run)
    return torch.index_select(runs, 1, index.flatten(), out=onto).view(samples, -1)


def gather_rows(x: Tensor, index: Tensor, run: int) -> Tensor:
    """x (M, K) at the runs of n groups (n, kept), as (n, M, kept * run).

    For four bytes and more a view of what `gather_runs` gives, whose groups lie side by side in
    each row: MKL multiplies that as it is. oneDNN would copy it, so two-byte types are gathered
    group by group.
    """
    samples, (groups, kept) = len(x), index.shape
    if x.element_size() > 2:
        return gather_runs(x, index, run).view(samples, groups, -1).transpose(0, 1)
    runs = x.shape[1] // run
    first = torch.arange(0, samples * runs, runs, dtype=index.dtype).unsqueeze(1)
    every = (index.unsqueeze(1) + first).flatten()  # (n, M, kept)
    return x.view(-1, run).index_select(0, every).view(groups, samples, kept * run)


def gather_columns(xt: Tensor, index: Tensor, run: int) -> Tensor:
    """x^T (K, M) at the runs of n groups (n, kept), as (n, kept * run, M)."""
    samples = xt.shape[1]
    runs = xt.view(-1, run * samples).index_select(0, index.flatten())
    return runs.view(len(index), -1, samples)
