"""Reductions: summed dims are consumed, dims whose units compete are frozen."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def _chosen(r: Rules, rank: int) -> list[int]:
    dims = r.arg(1, "dim")
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims]))


def _reduced(r: Rules, dims: Dims, chosen: list[int]) -> Dims:
    keep = r.arg(2, "keepdim", False)
    return [
        r.fresh(1) if i in chosen else dim for i, dim in enumerate(dims) if keep or i not in chosen
    ]


def sum_dims(r: Rules) -> Dims:
    """sum: removed units contribute nothing."""
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.use((0,), i, dims[i])
    return _reduced(r, dims, chosen)


def mean_dims(r: Rules) -> Dims:
    """mean: over the units that stay, so the dims are coupled."""
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.couple(dims[i], "a mean over it")
        r.use((0,), i, dims[i], "mean")
    return _reduced(r, dims, chosen)


def sum_all(r: Rules) -> Dims:
    """sum of everything."""
    dims = r.of(r.arg(0))
    for i, dim in enumerate(dims):
        r.use((0,), i, dim)
    return []


def frozen_reduction(r: Rules) -> Any:
    """max, min, argmax, var, norm and the like: reduced dims are frozen."""
    dims = r.of(r.arg(0))
    chosen = _chosen(r, len(dims))
    for i in chosen:
        r.freeze(dims[i], f"reduced by {r.node.target}")
    result = _reduced(r, dims, chosen)
    value = r.node.meta["val"]
    return [result] * len(value) if isinstance(value, (list, tuple)) else result


def along(r: Rules) -> Dims:
    """softmax, log_softmax, cumsum, sort-like: units along the dim compete, so it is frozen."""
    dims = r.of(r.arg(0))
    if dims:
        r.freeze(dims[r.arg(1, "dim")], f"{r.node.target} runs along it")
    return dims


def roll(r: Rules) -> Dims:
    """roll, flip: positions move, so the dims are frozen."""
    dims = r.of(r.arg(0))
    moved = r.arg(2, "dims") if r.node.target is aten.roll.default else r.arg(1)
    for i in moved or range(len(dims)):
        r.freeze(dims[i], "positions move (roll, flip)")
    return dims


TABLE: dict[Any, Rule] = {
    aten.sum.dim_IntList: sum_dims,
    aten.sum.default: sum_all,
    aten.mean.dim: mean_dims,
    aten.mean.default: mean_dims,
    aten.amax.default: frozen_reduction,
    aten.amin.default: frozen_reduction,
    aten.max.dim: frozen_reduction,
    aten.min.dim: frozen_reduction,
    aten.argmax.default: frozen_reduction,
    aten.argmin.default: frozen_reduction,
    aten.any.dim: frozen_reduction,
    aten.all.dim: frozen_reduction,
    aten.var.correction: frozen_reduction,
    aten.linalg_vector_norm.default: frozen_reduction,
    aten.softmax.int: along,
    aten.log_softmax.int: along,
    aten._softmax.default: along,
    aten._log_softmax.default: along,
    aten.cumsum.default: along,
    aten.roll.default: roll,
    aten.flip.default: roll,
}
