"""Pooling and interpolation: batch and channels pass, spatial dims are frozen."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def _spatial(rank: int) -> Rule:
    def rule(r: Rules) -> Any:
        dims = r.of(r.arg(0))
        lead = dims[:-rank]
        r.freeze(dims[-rank:], f"spatial window of {r.node.target}")
        for operand in r.node.all_input_nodes[1:]:  # places of maxima, random places
            if r.dims.get(operand) is not None:
                r.freeze(r.of(operand)[-rank:], f"spatial window of {r.node.target}")

        def made(value: Any) -> Dims:
            sizes = r.shape_of(value)
            return [*lead, *(r.fresh(s, "spatial size of pooling") for s in sizes[-rank:])]

        value = r.node.meta["val"]
        return [made(v) for v in value] if isinstance(value, (list, tuple)) else made(value)

    return rule


def unpool(rank: int) -> Rule:
    """max_unpool(x, indices, sizes): indices run parallel to x."""

    def rule(r: Rules) -> Any:
        for mine, theirs in zip(r.of(r.arg(0)), r.of(r.arg(1)), strict=True):
            r.unify(mine, theirs)
        return _spatial(rank)(r)

    return rule


def grid_sampler(r: Rules) -> Dims:
    """x (N, C, *), grid (N, *out, rank) -> (N, C, *out)."""
    x, grid = r.of(r.arg(0)), r.of(r.arg(1))
    r.unify(x[0], grid[0])
    r.freeze([*x[2:], grid[-1]], f"spatial window of {r.node.target}")
    return [*x[:2], *grid[1:-1]]


def affine_grid(r: Rules) -> Dims:
    """theta (N, rank, rank + 1), size -> (N, *size, rank)."""
    theta = r.of(r.arg(0))
    r.freeze(theta[1:], "an affine map")
    return [theta[0], *(r.fresh(s, "spatial size of a grid") for s in r.shape()[1:])]


_OPS: dict[int, tuple[str, ...]] = {
    1: (
        "avg_pool1d.default",
        "max_pool1d.default",
        "max_pool1d_with_indices.default",
        "adaptive_avg_pool1d.default",
        "adaptive_max_pool1d.default",
        "upsample_nearest1d.vec",
        "upsample_nearest1d.default",
        "_upsample_nearest_exact1d.vec",
        "upsample_linear1d.vec",
        "upsample_linear1d.default",
    ),
    2: (
        "avg_pool2d.default",
        "max_pool2d.default",
        "max_pool2d_with_indices.default",
        "adaptive_avg_pool2d.default",
        "_adaptive_avg_pool2d.default",
        "adaptive_max_pool2d.default",
        "upsample_nearest2d.vec",
        "upsample_nearest2d.default",
        "_upsample_nearest_exact2d.vec",
        "upsample_bilinear2d.vec",
        "upsample_bilinear2d.default",
        "_upsample_bilinear2d_aa.vec",
        "upsample_bicubic2d.vec",
        "upsample_bicubic2d.default",
        "_upsample_bicubic2d_aa.vec",
    ),
    3: (
        "avg_pool3d.default",
        "max_pool3d.default",
        "max_pool3d_with_indices.default",
        "adaptive_avg_pool3d.default",
        "adaptive_max_pool3d.default",
        "upsample_nearest3d.vec",
        "_upsample_nearest_exact3d.vec",
        "upsample_trilinear3d.vec",
    ),
}


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload)


TABLE: dict[Any, Rule] = {
    **{_overload(name): _spatial(rank) for rank, names in _OPS.items() for name in names},
    aten.max_unpool2d.default: unpool(2),
    aten.max_unpool3d.default: unpool(3),
    aten.grid_sampler.default: grid_sampler,
    aten.affine_grid_generator.default: affine_grid,
}
