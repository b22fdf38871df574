"""Normalisations: affine parameters unify with the dims they scale.

Batch and instance norm keep statistics per channel, so cutting channels is exact. Layer, RMS and
group norm share statistics between units, so cutting some of them is coupled (lossy); their
meaning of a cut is "statistics over the units that stay".
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def batch_norm(r: Rules) -> Dims:
    """x (N, C, *); weight, bias, running mean and variance (C)."""
    x = r.of(r.arg(0))
    r.freeze([x[0], *x[2:]], "statistics are taken over it")
    for i in range(1, 5):
        if r.arg(i) is not None:
            r.unify(x[1], r.of(r.arg(i))[0])
    return x


def layer_norm(r: Rules) -> Dims:
    """x (..., *normalized_shape); weight and bias of the normalised shape."""
    return _last_dims(r, "layer_norm", (2, 3))


def rms_norm(r: Rules) -> Dims:
    """As layer norm, without centring."""
    return _last_dims(r, "rms_norm", (2,))


def _last_dims(r: Rules, kind: str, affine: tuple[int, ...]) -> Dims:
    x, shape = r.of(r.arg(0)), r.arg(1)
    start = len(x) - len(shape)
    for i in affine:
        if r.arg(i) is not None:
            for mine, theirs in zip(x[start:], r.of(r.arg(i)), strict=True):
                r.unify(mine, theirs)
    for i, dim in enumerate(x[start:]):
        r.couple(dim, f"{kind} shares statistics between units")
        r.role(dim, "normalised")
        r.literal((1, i), dim)
        r.use((0,), start + i, dim, kind)
    return x


def group_norm(r: Rules) -> Dims:
    """x (N, C, *), num_groups G: statistics over C/G channels; whole groups cut exactly."""
    x, groups = r.of(r.arg(0)), r.arg(1)
    r.freeze(x[2:], "statistics are taken over it")
    channels = r.shape(r.arg(0))[1]
    group, inner = r.fresh(groups), r.fresh(channels // groups)
    r.role(group, "groups")
    r.unify(x[1], r.product([group, inner]))
    r.couple(inner, "group_norm shares statistics within a group")
    r.role(inner, "normalised")
    r.literal((1,), group)
    r.use((0,), 1, x[1], "group_norm")
    for i in (2, 3):
        if r.arg(i) is not None:
            r.unify(x[1], r.of(r.arg(i))[0])
    return x


TABLE: dict[Any, Rule] = {
    aten.batch_norm.default: batch_norm,
    aten.instance_norm.default: batch_norm,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten.group_norm.default: group_norm,
}
