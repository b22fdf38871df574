"""Reductions and what runs along a dim: how a unit is left out of each of them.

Sums and the 2-norm of a masked unit are those without it, so cuts are exact. Means, variances,
extremes, products and softmax are taken over the units that stay: such dims are coupled. Where
no value of a unit leaves it out (positions as results, sorting), the dim is frozen.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def _chosen(r: Rules, rank: int) -> list[int]:
    dims = r.arg(1, "dim")
    if dims is None or dims == []:
        return list(range(rank))
    if rank == 0:
        return []
    return sorted(d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _reduced(r: Rules, dims: Dims, chosen: list[int]) -> Dims:
    keep = r.arg(2, "keepdim", False)
    return [
        r.fresh(1) if i in chosen else dim for i, dim in enumerate(dims) if keep or i not in chosen
    ]


def _floating(r: Rules) -> bool:
    return bool(r.arg(0).meta["val"].dtype.is_floating_point)


def sum_dims(r: Rules) -> Dims:
    """sum: removed units contribute nothing."""
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.use((0,), i, dims[i])
    return _reduced(r, dims, chosen)


def mean_dims(r: Rules) -> Dims:
    """mean: over the units that stay, so the dims are coupled."""
    return _coupled(r, "mean", "a mean over it")


def sum_all(r: Rules) -> Dims:
    """sum of everything."""
    dims = r.of(r.arg(0))
    for i, dim in enumerate(dims):
        r.use((0,), i, dim)
    return []


def moments(r: Rules) -> Any:
    """var, std, var_mean, std_mean with a correction: over the units that stay."""
    result = _coupled(r, "moments", "a variance over it")
    value = r.node.meta["val"]
    return [result] * len(value) if isinstance(value, (list, tuple)) else result


def _coupled(r: Rules, kind: str, reason: str) -> Dims:
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.couple(dims[i], reason)
        if kind in ("mean", "moments"):
            r.role(dims[i], "normalised")
        r.use((0,), i, dims[i], kind)
    return _reduced(r, dims, chosen)


def neutral(kind: str) -> Rule:
    """A reduction that leaves out units set to a neutral value: see `Use.kind`."""

    def rule(r: Rules) -> Any:
        value = r.node.meta["val"]
        several = isinstance(value, (list, tuple))
        if not _floating(r):
            return frozen_reduction(r)
        result = _coupled(r, kind, f"{r.node.target} is taken over it")
        if several:  # values, and where they are
            dims = r.of(r.arg(0))
            if dims:
                r.point(dims[r.arg(1, "dim")], item=1)
        return [result] * len(value) if several else result

    return rule


def place(kind: str) -> Rule:
    """argmax(x, dim, keepdim), argmin: positions along one dim."""

    def rule(r: Rules) -> Any:
        dims, dim = r.of(r.arg(0)), r.arg(1, "dim")
        if dim is None or not dims or not _floating(r):
            return frozen_reduction(r)
        r.point(dims[dim])
        return _coupled(r, kind, f"{r.node.target} chooses among it")

    return rule


def norm(r: Rules) -> Dims:
    """linalg_vector_norm(x, ord, dim, keepdim): zeros add nothing to a norm of positive order."""
    dims, order = r.of(r.arg(0)), r.arg(1, "ord", 2)
    reduced = r.arg(2, "dim")
    chosen = [d % len(dims) for d in (range(len(dims)) if reduced in (None, []) else reduced)]
    exact = isinstance(order, (int, float)) and order > 0
    for i in chosen:
        if exact:
            r.use((0,), i, dims[i])
        else:
            r.freeze(dims[i], f"reduced by {r.node.target}")
    keep = r.arg(3, "keepdim", False)
    return [
        r.fresh(1) if i in chosen else dim for i, dim in enumerate(dims) if keep or i not in chosen
    ]


def any_norm(r: Rules) -> Dims:
    """linalg_norm, linalg_matrix_norm (x, ord, dim, keepdim): vector and Frobenius norms."""
    matrix = r.node.target is not aten.linalg_norm.default
    order, named = r.arg(1, "ord", "fro" if matrix else None), r.arg(2, "dim")
    dims = r.of(r.arg(0))
    named = [-2, -1] if matrix and named is None else named
    chosen = [d % len(dims) for d in (range(len(dims)) if named is None else named)]
    vector = not matrix and len(chosen) == 1
    exact = order in (None, "fro") or (vector and isinstance(order, (int, float)) and order > 0)
    for i in chosen:
        if exact:
            r.use((0,), i, dims[i])
        else:
            r.freeze(dims[i], f"reduced by {r.node.target}")
    keep = r.arg(3, "keepdim", False)
    return [
        r.fresh(1) if i in chosen else dim for i, dim in enumerate(dims) if keep or i not in chosen
    ]


def frozen_reduction(r: Rules) -> Any:
    """Reductions that no value leaves a unit out of: reduced dims are frozen."""
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.freeze(dims[i], f"reduced by {r.node.target}")
    result = _reduced(r, dims, chosen)
    value = r.node.meta["val"]
    return [result] * len(value) if isinstance(value, (list, tuple)) else result


def softmax(r: Rules) -> Dims:
    """softmax, log_softmax: units compete; those that stay share what is given out."""
    dims = r.of(r.arg(0))
    if dims and not _floating(r):
        r.freeze(dims[r.arg(1, "dim")], f"{r.node.target} runs along it")
    elif dims:
        i = r.arg(1, "dim") % len(dims)
        r.couple(dims[i], f"{r.node.target} runs along it")
        r.use((0,), i, dims[i], "lowest")
    return dims


def cumsum(r: Rules) -> Dims:
    """cumsum: a unit that is zero adds nothing to those behind it."""
    dims = r.of(r.arg(0))
    if dims:
        i = r.arg(1, "dim") % len(dims)
        r.use((0,), i, dims[i])
    return dims


def along(r: Rules) -> Any:
    """cumprod, cummax and the like: dims pass, the one they run along is frozen."""
    dims = r.of(r.arg(0))
    if dims:
        r.freeze(dims[r.arg(1, "dim", -1)], f"{r.node.target} runs along it")
    value = r.node.meta["val"]
    return [dims] * len(value) if isinstance(value, (list, tuple)) else dims


def roll(r: Rules) -> Dims:
    """roll(x, shifts, dims), flip(x, dims): positions move, so the dims are frozen."""
    dims = r.of(r.arg(0))
    moved = r.arg(2, "dims") if r.node.target is aten.roll.default else r.arg(1, "dims")
    for i in moved or range(len(dims)):
        r.freeze(dims[i], "positions move (roll, flip)")
    return dims


def flip_one(dim: int) -> Rule:
    """fliplr, flipud."""

    def rule(r: Rules) -> Dims:
        r.freeze(r.of(r.arg(0))[dim], "positions move (roll, flip)")
        return r.of(r.arg(0))

    return rule


def rot90(r: Rules) -> Dims:
    """rot90(x, k, dims): the two dims move, and swap for odd k."""
    dims, (a, b) = list(r.of(r.arg(0))), r.arg(2, "dims", (0, 1))
    r.freeze([dims[a], dims[b]], "positions move (rot90)")
    if r.arg(1, "k", 1) % 2:
        dims[a], dims[b] = dims[b], dims[a]
    return dims


_LOWEST, _HIGHEST = neutral("lowest"), neutral("highest")

TABLE: dict[Any, Rule] = {
    aten.sum.dim_IntList: sum_dims,
    aten.nansum.default: sum_dims,
    aten.sum.default: sum_all,
    aten.mean.dim: mean_dims,
    aten.mean.default: mean_dims,
    aten.var.correction: moments,
    aten.std.correction: moments,
    aten.var_mean.correction: moments,
    aten.std_mean.correction: moments,
    **dict.fromkeys((aten.amax.default, aten.max.dim, aten.max.default), _LOWEST),
    **dict.fromkeys((aten.amin.default, aten.min.dim, aten.min.default), _HIGHEST),
    aten.logsumexp.default: _LOWEST,
    aten.prod.dim_int: neutral("one"),
    aten.prod.default: neutral("one"),
    aten.linalg_vector_norm.default: norm,
    aten.linalg_norm.default: any_norm,
    aten.linalg_matrix_norm.default: any_norm,
    aten.linalg_matrix_norm.str_ord: any_norm,
    aten.argmax.default: place("lowest"),
    aten.argmin.default: place("highest"),
    **dict.fromkeys(
        (
            aten.any.dim,
            aten.any.dims,
            aten.any.default,
            aten.all.dim,
            aten.all.dims,
            aten.all.default,
            aten.count_nonzero.dim_IntList,
            aten.count_nonzero.default,
            aten.aminmax.default,
        ),
        frozen_reduction,
    ),
    aten.softmax.int: softmax,
    aten.log_softmax.int: softmax,
    aten._softmax.default: softmax,
    aten._log_softmax.default: softmax,
    aten.cumsum.default: cumsum,
    aten.cumprod.default: along,
    aten.cummax.default: along,
    aten.cummin.default: along,
    aten.logcumsumexp.default: along,
    aten.roll.default: roll,
    aten.flip.default: roll,
    aten.fliplr.default: flip_one(1),
    aten.flipud.default: flip_one(0),
    aten.rot90.default: rot90,
}
