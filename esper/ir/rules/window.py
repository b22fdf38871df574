"""Windows and blocks: unfold and fold, pixel and channel shuffles (PyTorch docs of each layer)."""

from __future__ import annotations

import math
from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def unfold(r: Rules) -> Dims:
    """Tensor.unfold(dim, size, step): windows along `dim`, their content in a new last dim."""
    dims, dim = list(r.of(r.arg(0))), r.arg(1)
    if not dims:
        return [r.fresh(1)]
    r.freeze(dims[dim], "windows slide along it (unfold)")
    dim %= len(dims)
    made = [r.fresh(r.shape()[i], "windows made by unfold") for i in (dim, len(dims))]
    return [*dims[:dim], made[0], *dims[dim + 1 :], made[1]]


def im2col(r: Rules) -> Dims:
    """F.unfold: (N, C, H, W) -> (N, C x window, places)."""
    dims, window = r.of(r.arg(0)), math.prod(r.arg(1))
    r.freeze(dims[-2:], "windows slide along it (unfold)")
    inside = r.product([dims[-3], r.fresh(window, "place within a window")])
    return [*dims[:-3], inside, r.fresh(r.shape()[-1], "windows made by unfold")]


def col2im(r: Rules) -> Dims:
    """F.fold: (N, C x window, places) -> (N, C, H, W)."""
    dims, window = r.of(r.arg(0)), math.prod(r.arg(2))
    channels = r.fresh(r.shape()[-3])
    r.unify(dims[-2], r.product([channels, r.fresh(window, "place within a window")]))
    r.freeze(dims[-1], "windows are added up (fold)")
    return [*dims[:-2], channels, *(r.fresh(s, "made by fold") for s in r.shape()[-2:])]


def pixel_shuffle(r: Rules) -> Dims:
    """(..., C*r*r, H, W) -> (..., C, H*r, W*r)."""
    dims, factor = r.of(r.arg(0)), r.arg(1)
    channels = r.fresh(r.shape()[-3])
    inner = r.fresh(factor * factor, "pixel shuffle")
    r.unify(dims[-3], r.product([channels, inner]))
    r.freeze(dims[-2:], "pixel shuffle")
    return [*dims[:-3], channels, *(r.fresh(s, "pixel shuffle") for s in r.shape()[-2:])]


def pixel_unshuffle(r: Rules) -> Dims:
    """(..., C, H*r, W*r) -> (..., C*r*r, H, W)."""
    dims, factor = r.of(r.arg(0)), r.arg(1)
    r.freeze(dims[-2:], "pixel unshuffle")
    channels = r.product([dims[-3], r.fresh(factor * factor, "pixel unshuffle")])
    return [*dims[:-3], channels, *(r.fresh(s, "pixel unshuffle") for s in r.shape()[-2:])]


def channel_shuffle(r: Rules) -> Dims:
    """(N, groups x inner, *) -> (N, inner x groups, *)."""
    dims, groups = r.of(r.arg(0)), r.arg(1)
    group, inner = r.fresh(groups), r.fresh(r.shape()[1] // groups)
    r.unify(dims[1], r.product([group, inner]))
    r.literal((1,), group)
    return [dims[0], r.product([inner, group]), *dims[2:]]


TABLE: dict[Any, Rule] = {
    aten.unfold.default: unfold,
    aten.im2col.default: im2col,
    aten.col2im.default: col2im,
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
    aten.native_channel_shuffle.default: channel_shuffle,
}
