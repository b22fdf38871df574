"""Data that addresses data: gather, scatter, sorting, histograms.

A dim that is addressed by values keeps every position: it is frozen, unless the values are
positions along a dim of the model itself (the experts that a router chose): then both are the same
units. The dims beside it pass on, and the dims of indices unify with those that they run parallel
to.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.unify import Dim

aten = torch.ops.aten
KEYWORD = 99


def _reason(r: Rules) -> str:
    return f"addressed by data ({str(r.node.target).removeprefix('aten.').partition('.')[0]})"


def advanced(r: Rules) -> Dims:
    """index.Tensor: indexed dims are frozen; dims around adjacent indices pass."""
    dims, indices, reason = r.of(r.arg(0)), list(r.arg(1)), _reason(r)
    covered = _covered(r, dims, indices, reason)
    if covered is None:
        r.freeze(dims, reason)
        for index in filter(None, indices):
            r.freeze(r.of(index), reason)
        return [r.fresh(size, reason) for size in r.shape()]
    before, after = dims[: covered[0]], dims[covered[1] :]
    made = r.shape()[len(before) : len(r.shape()) - len(after)]
    return [*before, *(r.fresh(size, reason) for size in made), *after]


def _covered(r: Rules, dims: Dims, indices: list[Any], reason: str) -> tuple[int, int] | None:
    """First and last (exclusive) dim that indices address, frozen; None if not side by side.

    A mask of k dims addresses k dims at once.
    """
    start = end = at = 0
    adjacent, found = True, False
    alone = sum(index is not None for index in indices) == 1
    for index in indices:
        if index is None:
            at += 1
            continue
        mask = index.meta["val"].dtype in (torch.bool, torch.uint8)
        width = len(r.of(index)) if mask else 1
        if alone and not mask:
            _addressed(r, dims[at], index)
        else:
            r.freeze(dims[at : at + width], reason)
        r.freeze(r.of(index), reason)
        adjacent = adjacent and (not found or at == end)
        start = start if found else at
        at += width
        end, found = at, True
    return (start, end) if adjacent and found else None


def _addressed(r: Rules, dim: Dim, index: Any) -> None:
    """A dim whose positions `index` holds: the same units as those, or frozen."""
    positions = r.pointed(index)
    if positions is None:
        r.freeze(dim, _reason(r))
        return
    r.unify(dim, positions)
    if r.arg(0).op == "get_attr":
        r.role(dim, "experts")


def index_put(r: Rules) -> Dims:
    """index_put(x, indices, values): one value under a full mask is element-wise."""
    dims, indices, values = r.of(r.arg(0)), list(r.arg(1)), r.of(r.arg(2))
    reason = _reason(r)
    first = indices[0]
    mask = first is not None and first.meta["val"].dtype is torch.bool
    if mask and len(indices) == 1 and not values:
        for mine, theirs in zip(dims, r.of(first), strict=False):
            r.unify(mine, theirs)
        return dims
    covered = _covered(r, dims, indices, reason)
    if covered is None or covered[0] > 0:
        r.freeze([*dims, *values], reason)
        return dims
    rest = dims[covered[1] :]
    split = max(len(values) - len(rest), 0)
    r.freeze(values[:split], reason)
    for mine, theirs in zip(reversed(rest), reversed(values[split:]), strict=False):
        if not r.is_one(theirs):
            r.unify(mine, theirs)
    return dims


def index_select(r: Rules) -> Dims:
    """index_select(dim, index): the indexed dim is frozen, the others pass."""
    dims, dim = list(r.of(r.arg(0))), r.arg(1)
    if not dims:
        return dims
    _addressed(r, dims[dim], r.arg(2))
    dims[dim] = r.fresh(r.shape()[dim], _reason(r))
    return dims


def gather(r: Rules) -> Dims:
    """gather(x, dim, index) -> as index: dims beside `dim` run parallel if they are equal."""
    return _parallel(r, r.arg(0), r.arg(2), dim=r.arg(1))


def take_along_dim(r: Rules) -> Dims:
    """take_along_dim(x, indices, dim): as gather, with broadcasting (then frozen)."""
    x, index, dim = r.arg(0), r.arg(1), r.arg(2, "dim")
    sizes, others = r.shape(x), r.shape(index)
    beside = dim is not None and all(
        a == b for i, (a, b) in enumerate(zip(sizes, others, strict=False)) if i != dim % len(sizes)
    )
    if beside and len(sizes) == len(others):
        return _parallel(r, x, index, dim=dim)
    r.freeze([*r.of(x), *r.of(index)], _reason(r))
    return [r.fresh(size, _reason(r)) for size in r.shape()]


def scatter(r: Rules) -> Dims:
    """scatter(x, dim, index, src or value), scatter_add, scatter_reduce -> as x."""
    x, index, source = r.arg(0), r.arg(2), r.arg(3)
    if isinstance(source, torch.fx.Node) and r.of(source):
        _beside(r, source, index, dim=r.arg(1))
        r.freeze(r.of(source)[r.arg(1)], _reason(r))
    _parallel(r, x, index, dim=r.arg(1))
    return r.of(x)


def _parallel(r: Rules, x: Any, index: Any, dim: int) -> Dims:
    if r.of(x):
        _addressed(r, r.of(x)[dim], index)
        r.freeze(r.of(index)[dim], _reason(r))
    return _beside(r, x, index, dim)


def _beside(r: Rules, x: Any, index: Any, dim: int) -> Dims:
    mine, theirs = r.of(x), r.of(index)
    reason = _reason(r)
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if i == dim % len(mine):
            continue
        if r.shape(x)[i] != r.shape(index)[i]:
            r.freeze([a, b], reason)
        else:
            r.unify(a, b)
    return theirs


def index_into(r: Rules) -> Dims:
    """index_add, index_copy (x, dim, index, source), index_fill (x, dim, index, value)."""
    dims, dim = r.of(r.arg(0)), r.arg(1)
    r.freeze([dims[dim], *r.of(r.arg(2))], _reason(r))
    source = r.arg(3)
    if isinstance(source, torch.fx.Node) and r.of(source):
        for i, (mine, theirs) in enumerate(zip(dims, r.of(source), strict=True)):
            if i == dim % len(dims):
                r.freeze(theirs, _reason(r))
            else:
                r.unify(mine, theirs)
    return dims


def ordered(dim_at: int, default: int = -1) -> Rule:
    """sort, kthvalue, median, differences: one dim is frozen, the others pass.

    `dim_at` is the position of `dim` among the arguments, KEYWORD where it has none.
    """

    def rule(r: Rules) -> Any:
        dims, dim = r.of(r.arg(0)), r.arg(dim_at, "dim", default)
        reason = f"{r.node.target} runs along it"
        value = r.node.meta["val"]
        several = isinstance(value, (list, tuple))
        first = value[0] if several else value
        if not dims:
            return [dims] * len(value) if several else dims
        r.freeze(dims[dim], reason)
        result = list(dims)
        dim %= len(dims)
        if first.ndim < len(dims):
            del result[dim]
        elif first.shape[dim] != r.shape(r.arg(0))[dim]:
            result[dim] = r.fresh(first.shape[dim], reason)
        return [result] * len(value) if several else result

    return rule


def topk(r: Rules) -> Any:
    """topk(x, k, dim, largest): values and places of the k largest; so many must stay."""
    dims, k, dim = r.of(r.arg(0)), r.arg(1), r.arg(2, "dim", -1)
    if not dims or not isinstance(k, int) or not r.arg(0).meta["val"].dtype.is_floating_point:
        return ordered(2)(r)
    dim %= len(dims)
    r.couple(dims[dim], f"{r.node.target} chooses among it")
    r.at_least(dims[dim], k)
    r.use((0,), dim, dims[dim], "lowest" if r.arg(3, "largest", True) else "highest")
    r.point(dims[dim], item=1)
    r.role(dims[dim], "experts")
    result = [*dims[:dim], r.fresh(k, "ranks of topk"), *dims[dim + 1 :]]
    return [result, result]


def diff(r: Rules) -> Dims:
    """diff(x, n, dim, prepend, append)."""
    for extra in (r.arg(3, "prepend"), r.arg(4, "append")):
        if extra is not None:
            r.freeze([*r.of(r.arg(0)), *r.of(extra)], f"{r.node.target} runs along it")
    dims: Dims = ordered(2)(r)
    return dims


def one_hot(r: Rules) -> Dims:
    """one_hot(x, classes): classes are addressed by data."""
    classes = r.fresh(r.shape()[-1])
    _addressed(r, classes, r.arg(0))
    if isinstance(r.arg(1), int) and r.arg(1) > 0:
        r.literal((1,), classes)
    else:
        r.freeze(classes, "classes counted at run time")
    return [*r.of(r.arg(0)), classes]


def bucketize(r: Rules) -> Dims:
    """bucketize(x, boundaries): element-wise in x."""
    r.freeze(r.of(r.arg(1)), _reason(r))
    return r.of(r.arg(0))


def searchsorted(r: Rules) -> Dims:
    """searchsorted(sorted (..., L), x (..., M)) -> as x; leading dims run parallel."""
    table, x = r.of(r.arg(0)), r.of(r.arg(1))
    r.freeze(table[-1], _reason(r))
    if len(table) > 1:
        r.freeze(x[-1], _reason(r))
        for mine, theirs in zip(table[:-1], x[:-1], strict=True):
            r.unify(mine, theirs)
    return x


def embedding(r: Rules) -> Dims:
    """weight (V, D), indices (*) -> (*, D); V is addressed by data."""
    weight, positions = r.of(r.arg(0)), r.pointed(r.arg(1))
    if positions is None:
        r.freeze(weight[0], "rows are addressed by data (embedding)")
    else:  # the codes nearest to what was encoded
        r.unify(weight[0], positions)
    r.role(weight[0], "vocabulary")
    r.role(weight[1], "embedding")
    return [*r.of(r.arg(1)), weight[1]]


def embedding_bag(r: Rules) -> list[Dims]:
    """weight (V, D), indices, offsets -> (bags, D) and three lists of positions."""
    weight = r.of(r.arg(0))
    reason = "rows are addressed by data (embedding)"
    r.freeze([weight[0], *(d for i in (1, 2) for d in r.of(r.arg(i)))], reason)
    r.role(weight[0], "vocabulary")
    r.role(weight[1], "embedding")
    per_sample = r.arg(6, "per_sample_weights")
    if per_sample is not None:
        r.freeze(r.of(per_sample), reason)
    values = r.node.meta["val"]
    bags = [r.fresh(r.shape_of(values[0])[0], reason), weight[1]]
    rest = [[r.fresh(size, reason) for size in r.shape_of(v)] for v in values[1:]]
    if r.arg(4, "mode", 0) == 2 and len(rest[2]) > 1:  # places of maxima, per unit
        rest[2][-1] = weight[1]
    return [bags, *rest]


TABLE: dict[Any, Rule] = {
    aten.index.Tensor: advanced,
    **dict.fromkeys(
        (aten.index_put.default, aten.index_put_.default, aten._unsafe_index_put.default), index_put
    ),
    aten._unsafe_index.Tensor: advanced,
    aten.index_select.default: index_select,
    aten.gather.default: gather,
    aten.take_along_dim.default: take_along_dim,
    **dict.fromkeys(
        (
            aten.scatter.src,
            aten.scatter.value,
            aten.scatter.reduce,
            aten.scatter.value_reduce,
            aten.scatter_add.default,
            aten.scatter_reduce.two,
            aten.scatter_.src,
            aten.scatter_.value,
            aten.scatter_add_.default,
        ),
        scatter,
    ),
    **dict.fromkeys(
        (
            aten.index_add.default,
            aten.index_copy.default,
            aten.index_fill.int_Scalar,
            aten.index_fill.int_Tensor,
            aten.index_add_.default,
            aten.index_copy_.default,
            aten.index_fill_.int_Scalar,
            aten.index_fill_.int_Tensor,
        ),
        index_into,
    ),
    aten.sort.default: ordered(1),
    aten.argsort.default: ordered(1),
    aten.sort.stable: ordered(KEYWORD),
    aten.argsort.stable: ordered(KEYWORD),
    aten.msort.default: ordered(KEYWORD, 0),
    aten.topk.default: topk,
    aten.kthvalue.default: ordered(2),
    aten.median.dim: ordered(1),
    aten.nanmedian.dim: ordered(1),
    aten.mode.default: ordered(1),
    aten.diff.default: diff,
    aten.trapezoid.dx: ordered(KEYWORD),
    aten.cumulative_trapezoid.dx: ordered(KEYWORD),
    aten.one_hot.default: one_hot,
    aten.bucketize.Tensor: bucketize,
    aten.searchsorted.Tensor: searchsorted,
    aten.embedding.default: embedding,
    aten.embedding_bag.default: embedding_bag,
    aten.embedding_bag.padding_idx: embedding_bag,
}
