"""Dims laid end to end, copied, or taken apart: cat, stack, split, repeat, writes to parts."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.unify import Dim, find

aten = torch.ops.aten


def repeat(r: Rules) -> Dims:
    """repeat: each dim becomes copies x dim; equal copies may go, as the count follows."""
    dims, counts = r.of(r.arg(0)), r.arg(1)
    dims = [r.fresh(1)] * (len(counts) - len(dims)) + dims
    result: Dims = []
    for i, (count, dim, size) in enumerate(zip(counts, dims, r.shape(), strict=True)):
        # A symbolic count (the batch, say) is what the size of the result is divided by.
        copies = count if isinstance(count, int) else _count(size, dim)
        if copies is None:
            r.freeze(dim, "copies made by repeat")
            result.append(r.fresh(size, "copies made by repeat"))
            continue
        times = r.fresh(copies)
        if isinstance(count, int):
            r.literal((1, i), times)
        result.append(r.product([times, dim]))
    return result


def _count(size: Any, dim: Dim) -> Any:
    whole = find(dim).size
    quotient = size / whole if not isinstance(size, int) else None
    return quotient if getattr(quotient, "is_integer", False) else None


def repeat_interleave(r: Rules) -> Dims:
    """repeat_interleave(n, dim): dim x copies; equal copies may go, as the count follows."""
    dims, count, dim = list(r.of(r.arg(0))), r.arg(1), r.arg(2, "dim")
    if dim is None:
        r.freeze(dims, "repeat_interleave of a flattened tensor")
        return [r.fresh(s, "repeat_interleave of a flattened tensor") for s in r.shape()]
    if not isinstance(count, int):
        r.freeze(dims[dim], "copies counted at run time")
        dims[dim] = r.fresh(r.shape()[dim], "copies counted at run time")
        return dims
    copies = r.fresh(count)
    r.literal((1,), copies)
    dims[dim] = r.product([dims[dim], copies])
    return dims


def cat(r: Rules) -> Dims:
    """cat: a sum along `dim`, the other dims unify."""
    tensors = [t for t in r.arg(0) if r.shape(t) != [0]]
    dim = r.arg(1, "dim", 0)
    rank = len(r.of(tensors[0]))
    dim %= rank
    result = list(r.of(tensors[0]))
    for tensor in tensors[1:]:
        for i, other in enumerate(r.of(tensor)):
            if i != dim:
                r.unify(result[i], other)
    result[dim] = r.total([r.of(tensor)[dim] for tensor in tensors])
    return result


def stack(r: Rules) -> Dims:
    """stack: a new frozen dim; the others unify."""
    tensors, dim = r.arg(0), r.arg(1, "dim", 0)
    result = list(r.of(tensors[0]))
    for tensor in tensors[1:]:
        for mine, other in zip(result, r.of(tensor), strict=True):
            r.unify(mine, other)
    result.insert(dim % (len(result) + 1), r.fresh(len(tensors), "positions made by stack"))
    return result


def split_with_sizes(r: Rules) -> list[Dims]:
    """split_with_sizes(sizes, dim): parts of a sum."""
    dims, sizes = r.of(r.arg(0)), r.arg(1)
    dim = r.arg(2, "dim", 0) % len(dims)
    parts = r.split(dims[dim], sizes)
    for i, part in enumerate(parts):
        r.literal((1, i), part)
    return [[*dims[:dim], part, *dims[dim + 1 :]] for part in parts]


def unbind(r: Rules) -> list[Dims]:
    """unbind(dim): equal parts, selected by index."""
    dims, dim = r.of(r.arg(0)), r.arg(1, "dim", 0)
    dim %= len(dims)
    r.freeze(dims[dim], "taken apart by unbind")
    return [[*dims[:dim], *dims[dim + 1 :]]] * len(r.node.meta["val"])


def slice_scatter(r: Rules) -> Dims:
    """slice_scatter(x, source, dim, start, end, step): the source takes the place of one part."""
    dims, source = r.of(r.arg(0)), r.of(r.arg(1))
    dim = r.arg(2, "dim", 0) % len(dims)
    start, end, step = r.arg(3, "start"), r.arg(4, "end"), r.arg(5, "step", 1)
    size, count = r.shape(r.arg(0))[dim], r.shape(r.arg(1))[dim]
    bounds = [bound for bound in (start, end, size, count) if bound is not None]
    if step != 1 or not all(isinstance(bound, int) and bound >= 0 for bound in bounds):
        return _beside(r, dim, source)
    begin = min(start or 0, size)
    parts = r.split(dims[dim], [n for n in (begin, count, size - begin - count) if n])
    before, chosen = parts[: bool(begin)], parts[bool(begin)]
    if before and r.node.args[3:]:
        r.literal((3,), *before)
    if r.node.args[4:] and end is not None and end <= size:
        r.literal((4,), *before, chosen)
    for i, (mine, theirs) in enumerate(zip(dims, source, strict=True)):
        r.unify(chosen if i == dim else mine, theirs)
    return dims


def select_scatter(r: Rules) -> Dims:
    """select_scatter(x, source, dim, index): `source` lacks `dim`."""
    dims, source, dim = r.of(r.arg(0)), list(r.of(r.arg(1))), r.arg(2)
    dim %= len(dims)
    return _beside(r, dim, [*source[:dim], dims[dim], *source[dim:]])


def _beside(r: Rules, dim: int, source: Dims) -> Dims:
    dims = r.of(r.arg(0))
    for i, (mine, theirs) in enumerate(zip(dims, source, strict=True)):
        if i == dim % len(dims):
            r.freeze([mine, theirs], f"written in part by {r.node.target}")
        else:
            r.unify(mine, theirs)
    return dims


TABLE: dict[Any, Rule] = {
    aten.repeat.default: repeat,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.cat.default: cat,
    aten.concat.default: cat,
    aten.stack.default: stack,
    aten.split_with_sizes.default: split_with_sizes,
    aten.unbind.int: unbind,
    aten.slice_scatter.default: slice_scatter,
    aten.select_scatter.default: select_scatter,
}
