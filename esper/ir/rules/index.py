"""Indexing by position, padding, and tensors made from sizes."""

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
    if step > 1 and (strided := _strided(r, dims, dim, step)) is not None:
        return strided
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


def _strided(r: Rules, dims: Dims, dim: int, step: int) -> Dims | None:
    """Every step-th unit: the dim is inner x step, and one of `step` is selected."""
    size, after = r.shape(r.arg(0))[dim], r.shape()[dim]
    start, end = r.arg(2, "start") or 0, r.arg(3, "end")
    static = all(isinstance(value, int) for value in (size, after, start))
    if (
        not static
        or r.settled(dims[dim])
        or size % step
        or not 0 <= start < step
        or after != size // step
    ):
        return None
    if isinstance(end, torch.fx.Node) or (isinstance(end, int) and end < size):
        return None
    inner = r.fresh(after)
    if isinstance(end, int) and end == size and end != sys.maxsize:
        r.literal((3,), dims[dim])
    r.unify(dims[dim], r.product([inner, r.fresh(step, "selects equal parts")]))
    dims[dim] = inner
    return dims


def select(r: Rules) -> Dims:
    """select(dim, index): one unit of a sum; the index moves with the units before it."""
    dims, dim, index = r.of(r.arg(0)), r.arg(1), r.arg(2)
    dim %= len(dims)
    size = r.shape(r.arg(0))[dim]
    rest = [*dims[:dim], *dims[dim + 1 :]]
    if not (isinstance(size, int) and isinstance(index, int) and index >= 0):
        r.freeze(dims[dim], "addressed by position (select)")
    elif not r.settled(dims[dim]):
        before = r.split(dims[dim], [s for s in (index, 1, size - index - 1) if s])[: bool(index)]
        if before:
            r.literal((2,), *before)
    return rest


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
    """pad(x, widths, mode): constants are laid around a dim, whose units pass; else frozen.

    `widths` holds (before, after) from the last dim on. Constants are units of their own, which
    may go together with what they are added to (the shortcut of a narrower stage, say).
    """
    dims, widths = list(r.of(r.arg(0))), r.arg(1)
    constant = r.node.target is not aten.pad.default or r.arg(2, "mode", "constant") == "constant"
    for i in range(len(widths) // 2):
        sides, at = widths[2 * i : 2 * i + 2], -1 - i
        if not any(isinstance(side, torch.fx.Node) or side for side in sides):
            continue
        size = r.shape(r.arg(0))[at]
        static = isinstance(size, int) and all(isinstance(s, int) and s >= 0 for s in sides)
        if not (constant and static) or r.settled(dims[at]):
            r.freeze(dims[at], "padded")
            dims[at] = r.fresh(r.shape()[at], "padded")
            continue
        around = [r.fresh(side) if side else None for side in sides]
        for side, made in enumerate(around):
            if made is not None:
                r.literal((1, 2 * i + side), made)
        before, after = ([dim] if dim is not None else [] for dim in around)
        dims[at] = r.total([*before, dims[at], *after])
    return dims


def eye(r: Rules) -> Dims:
    """eye(n): rows and columns are the same units."""
    dim = r.fresh(r.shape()[0])
    if isinstance(r.arg(0), int):
        r.literal((0,), dim)
    else:
        r.freeze(dim, "a size computed at run time")
    return [dim, dim]


def scalar_tensor(r: Rules) -> Dims:
    """A tensor without dims."""
    return []


TABLE: dict[Any, Rule] = {
    aten.slice.Tensor: slice_tensor,
    aten.eye.default: eye,
    **dict.fromkeys(
        (
            aten.eye.m,
            aten.randint.default,
            aten.randint.low,
            aten.randperm.default,
            aten.normal.float_float,
            aten.linspace.default,
            aten.logspace.default,
            aten.tril_indices.default,
            aten.triu_indices.default,
            aten.hann_window.default,
            aten.hann_window.periodic,
            aten.hamming_window.default,
            aten.blackman_window.default,
            aten.kaiser_window.default,
            aten.fft_fftfreq.default,
            aten.fft_rfftfreq.default,
        ),
        positions,
    ),
    aten.select.int: select,
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
