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

        def made(value: Any) -> Dims:
            sizes = r.shape() if value is r.node.meta["val"] else list(value.shape)
            return [*lead, *(r.fresh(s, "spatial size of pooling") for s in sizes[-rank:])]

        value = r.node.meta["val"]
        return [made(v) for v in value] if isinstance(value, (list, tuple)) else made(value)

    return rule


TABLE: dict[Any, Rule] = {
    **{
        op: _spatial(1)
        for op in (
            aten.avg_pool1d.default,
            aten.max_pool1d.default,
            aten.adaptive_avg_pool1d.default,
            aten.upsample_nearest1d.vec,
            aten.upsample_linear1d.vec,
        )
    },
    **{
        op: _spatial(2)
        for op in (
            aten.avg_pool2d.default,
            aten.max_pool2d.default,
            aten.max_pool2d_with_indices.default,
            aten.adaptive_avg_pool2d.default,
            aten.adaptive_max_pool2d.default,
            aten.upsample_nearest2d.vec,
            aten.upsample_nearest2d.default,
            aten.upsample_bilinear2d.vec,
            aten.upsample_bilinear2d.default,
            aten.upsample_bicubic2d.vec,
        )
    },
    **{
        op: _spatial(3)
        for op in (
            aten.avg_pool3d.default,
            aten.max_pool3d.default,
            aten.adaptive_avg_pool3d.default,
            aten.upsample_nearest3d.vec,
            aten.upsample_trilinear3d.vec,
        )
    },
}
