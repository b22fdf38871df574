"""Data movement: dims are renamed, reordered, refined into products or laid end to end."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def view(r: Rules) -> Dims:
    """view / reshape: groups of dims with equal products refine one another."""
    result = _regroup(r)
    for i, size in enumerate(r.arg(1)):
        if isinstance(size, int) and size != -1:
            r.literal((1, i), result[i])
        elif size != -1 and isinstance(r.shape()[i], int):
            r.freeze(result[i], "a view size computed at run time")
    _freeze_computed(r, r.arg(1), result)
    return result


def flatten(r: Rules) -> Dims:
    """flatten: no literal sizes to keep."""
    return _regroup(r)


def view_as(r: Rules) -> Dims:
    """view_as, reshape_as: the sizes are those of the other operand."""
    for mine, theirs in zip(_regroup(r), r.of(r.arg(1)), strict=True):
        r.unify(theirs, mine)
    return r.of(r.arg(1))


def at_least(rank: int) -> Rule:
    """atleast_2d, atleast_3d: dims of size 1 in front, and behind for 3."""

    def rule(r: Rules) -> Any:
        dims = list(r.of(r.arg(0)))
        if len(dims) >= rank:
            return dims
        if len(dims) == 2:  # (H, W) -> (H, W, 1)
            return [*dims, r.fresh(1)]
        if len(dims) == 1:
            return [r.fresh(1), *dims, *([r.fresh(1)] if rank == 3 else [])]
        return [r.fresh(1) for _ in range(rank)]

    return rule


def unflatten(r: Rules) -> Dims:
    """unflatten(dim, sizes)."""
    dim = r.arg(1) % len(r.of(r.arg(0)))
    result = _regroup(r)
    for i, size in enumerate(r.arg(2)):
        if isinstance(size, int) and size != -1:
            r.literal((2, i), result[dim + i])
    return result


def _freeze_computed(r: Rules, sizes: Any, result: Dims) -> None:
    # A size that is a product with a symbol (batch * heads) hides a literal in size arithmetic.
    for size, dim in zip(sizes, result, strict=True):
        if isinstance(size, torch.fx.Node) and size.target is not aten.sym_size.int:
            r.freeze(dim, "a view size computed at run time")


def _regroup(r: Rules) -> Dims:
    before, after = r.shape(r.arg(0)), r.shape()
    dims = r.of(r.arg(0))
    result: Dims = [r.fresh(size) for size in after]
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left: Any = 1
        right: Any = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while not _same(left, right) and (i < len(before) or j < len(after)):
            if i < len(before) and (j >= len(after) or _left_first(left, right)):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        group_in, group_out = dims[start_i:i], result[start_j:j]
        if not _same(left, right):
            r.freeze([*group_in, *group_out], "a view that does not factor")
            continue
        r.unify(r.product(group_out), r.product(group_in))
    return result


def _same(left: Any, right: Any) -> bool:
    return bool(left == right)


def _left_first(left: Any, right: Any) -> bool:
    """Whether the input side is the smaller one, symbols counting as large."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    ratio = right / left
    if ratio.is_Integer or not ratio.is_number:
        return bool(getattr(ratio, "is_integer", False)) or not isinstance(right, int)
    return bool(ratio > 1)


def permute(r: Rules) -> Dims:
    """permute(dims)."""
    dims = r.of(r.arg(0))
    return [dims[i] for i in r.arg(1)]


def transpose(r: Rules) -> Dims:
    """transpose(a, b)."""
    dims = list(r.of(r.arg(0)))
    a, b = r.arg(1), r.arg(2)
    dims[a], dims[b] = dims[b], dims[a]
    return dims


def reverse(r: Rules) -> Dims:
    """t, mT, numpy_T: the last dims swap (2-D at most for `t`)."""
    dims = list(r.of(r.arg(0)))
    if len(dims) > 1:
        dims[-1], dims[-2] = dims[-2], dims[-1]
    return dims


def movedim(r: Rules) -> Dims:
    """movedim(source, destination)."""
    dims = r.of(r.arg(0))
    source, destination = r.arg(1), r.arg(2)
    pairs = {
        d % len(dims): s % len(dims)
        for s, d in zip(_listed(source), _listed(destination), strict=True)
    }
    rest = iter(i for i in range(len(dims)) if i not in pairs.values())
    return [dims[pairs[i]] if i in pairs else dims[next(rest)] for i in range(len(dims))]


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def unsqueeze(r: Rules) -> Dims:
    """unsqueeze(dim)."""
    dims = list(r.of(r.arg(0)))
    dims.insert(r.arg(1) % (len(dims) + 1), r.fresh(1))
    return dims


def squeeze(r: Rules) -> Dims:
    """squeeze of all, one or several dims of size 1."""
    dims, sizes = r.of(r.arg(0)), r.shape(r.arg(0))
    chosen = range(len(dims)) if r.arg(1, "dim") is None else _listed(r.arg(1, "dim"))
    for d in chosen:
        if sizes[d] != 1:  # canonicalisation leaves none
            r.freeze(dims[d], "would be squeezed away if one unit were left")
    drop = {d % len(dims) for d in chosen if sizes[d] == 1}
    return [dim for i, dim in enumerate(dims) if i not in drop]


def expand(r: Rules) -> Dims:
    """expand: a dim of size 1 becomes a broadcast atom, the others pass."""
    dims, sizes, before, after = r.of(r.arg(0)), r.arg(1), r.shape(r.arg(0)), r.shape()
    lead = len(after) - len(before)
    result: Dims = []
    for i, size in enumerate(sizes):
        fresh = i < lead or (before[i - lead] == 1 and after[i] != 1)
        dim = r.fresh(after[i]) if fresh else dims[i - lead]
        if isinstance(size, int) and size != -1:
            r.literal((1, i), dim)
        result.append(dim)
    _freeze_computed(r, sizes, result)
    return result


def expand_as(r: Rules) -> Dims:
    """expand_as: broadcast with the other operand."""
    return r.broadcast(r.of(r.arg(1)), r.of(r.arg(0)))


TABLE: dict[Any, Rule] = {
    aten.view.default: view,
    aten.reshape.default: view,
    aten._unsafe_view.default: view,
    aten.flatten.using_ints: flatten,
    aten.unflatten.int: unflatten,
    aten.ravel.default: flatten,
    aten.view_as.default: view_as,
    aten.reshape_as.default: view_as,
    aten.atleast_1d.default: at_least(1),
    aten.atleast_2d.default: at_least(2),
    aten.atleast_3d.default: at_least(3),
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.t.default: reverse,
    aten.mT.default: reverse,
    aten.mH.default: reverse,
    aten.adjoint.default: reverse,
    aten.matrix_H.default: reverse,
    aten.numpy_T.default: lambda r: list(reversed(r.of(r.arg(0)))),
    aten.movedim.int: movedim,
    aten.movedim.intlist: movedim,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.default: squeeze,
    aten.squeeze.dim: squeeze,
    aten.squeeze.dims: squeeze,
    aten.expand.default: expand,
    aten.expand_as.default: expand_as,
}

MOVES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
        aten.expand_as.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        aten.slice.Tensor,
        aten.select.int,
        aten.contiguous.default,
        aten.clone.default,
        aten.detach.default,
        aten.alias.default,
    }
)
"""Ops whose result holds values of their first operand and nothing else."""
