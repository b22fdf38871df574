"""Indexing, and tensors made from sizes."""

from __future__ import annotations

import sys
from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def slice_tensor(r: Rules) -> Dims:
    """slice(dim, start, end, step): one part of a sum; literals move with the parts before it."""
    dims = list(r.of(r.arg(0)))
    dim = r.arg(1, "dim", 0) % len(dims)
    start, end, step = r.arg(2, "start"), r.arg(3, "end"), r.arg(4, "step", 1)
    size, after = r.shape(r.arg(0))[dim], r.shape()[dim]
    if size == after and step == 1 and start in (None, 0):
        if isinstance(end, int) and end != sys.maxsize and end == size:
            r.literal((3,), dims[dim])
        return dims
    if not (isinstance(size, int) and isinstance(after, int) and step == 1):
        r.freeze(dims[dim], "sliced with a step or a symbolic bound")
        dims[dim] = r.fresh(after, "sliced with a step or a symbolic bound")
        return dims
    if any(isinstance(bound, int) and bound < 0 for bound in (start, end)):
        # Such a bound moves with every unit behind it; canonicalisation leaves none.
        r.freeze(dims[dim], "sliced with a bound that counts from the end")
        dims[dim] = r.fresh(after, "sliced with a bound that counts from the end")
        return dims
    if isinstance(start, torch.fx.Node) or isinstance(end, torch.fx.Node):
        r.freeze(dims[dim], "sliced at a place computed at run time")
        dims[dim] = r.fresh(after, "sliced at a place computed at run time")
        return dims
    begin = min(start or 0, size)
    sizes = [begin, after, size - begin - after]
    parts = r.split(dims[dim], [s for s in sizes if s])
    before = parts[:1] if begin else []
    chosen = parts[len(before)]
    if before:
        r.literal((2,), *before)
    if isinstance(end, int) and end != sys.maxsize:
        r.literal((3,), *before, chosen)
    dims[dim] = chosen
    return dims


def select(r: Rules) -> Dims:
    """select(dim, index): the dim is addressed by position, so it is frozen."""
    dims, dim = r.of(r.arg(0)), r.arg(1)
    dim %= len(dims)
    r.freeze(dims[dim], "addressed by position (select)")
    return [*dims[:dim], *dims[dim + 1 :]]


def embedding(r: Rules) -> Dims:
    """weight (V, D), indices (*) -> (*, D); V is addressed by data."""
    weight = r.of(r.arg(0))
    r.freeze(weight[0], "rows are addressed by data (embedding)")
    r.role(weight[0], "vocabulary")
    r.role(weight[1], "embedding")
    return [*r.of(r.arg(1)), weight[1]]


def advanced(r: Rules) -> Dims:
    """index.Tensor: indexed dims are frozen; dims after contiguous leading indices pass."""
    dims, indices = r.of(r.arg(0)), list(r.arg(1))
    reason = "addressed by data (index)"
    positions = [i for i, index in enumerate(indices) if index is not None]
    for i in positions:
        r.freeze(dims[i], reason)
        r.freeze(r.of(indices[i]), reason)
    adjacent = positions == list(range(positions[0], positions[-1] + 1))
    masks = any(index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices if index)
    if not adjacent or masks:
        r.freeze(dims, reason)
        return [r.fresh(size, reason) for size in r.shape()]
    kept_before, kept_after = dims[: positions[0]], dims[positions[-1] + 1 :]
    made = r.shape()[len(kept_before) : len(r.shape()) - len(kept_after)]
    return [*kept_before, *(r.fresh(size, reason) for size in made), *kept_after]


def index_select(r: Rules) -> Dims:
    """index_select(dim, index): the indexed dim is frozen, the others pass."""
    dims, dim = list(r.of(r.arg(0))), r.arg(1)
    dim %= len(dims)
    r.freeze(dims[dim], "addressed by data (index_select)")
    dims[dim] = r.fresh(r.shape()[dim], "addressed by data (index_select)")
    return dims


def gather(r: Rules) -> Dims:
    """gather(dim, index): index and source share positions, all are frozen."""
    r.freeze(r.of(r.arg(0)), "addressed by data (gather)")
    r.freeze(r.of(r.arg(2)), "addressed by data (gather)")
    return r.of(r.arg(2))


def positions(r: Rules) -> Dims:
    """arange and random sources: values depend on position, so the dims are frozen."""
    return [r.fresh(size, "values depend on position") for size in r.shape()]


def filled(r: Rules) -> Dims:
    """zeros, ones, full, empty (size first): uniform, sizes follow as literals."""
    return _filled(r, 0)


def filled_like(r: Rules) -> Dims:
    """new_zeros, new_ones, new_full (size second)."""
    return _filled(r, 1)


def _filled(r: Rules, at: int) -> Dims:
    result = [r.fresh(size) for size in r.shape()]
    for i, (size, dim) in enumerate(zip(r.arg(at), result, strict=True)):
        if isinstance(size, int):
            r.literal((at, i), dim)
        else:
            r.freeze(dim, "a size computed at run time")
    return result


def triangular(r: Rules) -> Dims:
    """tril, triu: rows and columns are positions."""
    dims = r.of(r.arg(0))
    r.freeze(dims[-2:], "values depend on position")
    return dims


def pad(r: Rules) -> Dims:
    """pad: padded dims are frozen, the others pass."""
    dims, widths = list(r.of(r.arg(0))), r.arg(1)
    for i in range(len(widths) // 2):
        if widths[2 * i] or widths[2 * i + 1]:
            r.freeze(dims[-1 - i], "padded")
            dims[-1 - i] = r.fresh(r.shape()[-1 - i], "padded")
    return dims


def scalar_tensor(r: Rules) -> Dims:
    """A tensor without dims."""
    return []


TABLE: dict[Any, Rule] = {
    aten.slice.Tensor: slice_tensor,
    aten.select.int: select,
    aten.embedding.default: embedding,
    aten.index.Tensor: advanced,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.arange.default: positions,
    aten.arange.start: positions,
    aten.arange.start_step: positions,
    aten.rand.default: positions,
    aten.randn.default: positions,
    aten.zeros.default: filled,
    aten.ones.default: filled,
    aten.full.default: filled,
    aten.empty.memory_format: filled,
    aten.new_zeros.default: filled_like,
    aten.new_ones.default: filled_like,
    aten.new_full.default: filled_like,
    aten.new_empty.default: filled_like,
    aten.tril.default: triangular,
    aten.triu.default: triangular,
    aten.pad.default: pad,
    aten.constant_pad_nd.default: pad,
    aten.scalar_tensor.default: scalar_tensor,
}
