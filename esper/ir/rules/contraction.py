"""Contractions: the contracted dims unify and are consumed; the others pass on.

Shapes are those of the PyTorch documentation of each op.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.weights import MASK

aten = torch.ops.aten
KERNEL = "convolution kernel"  # not an axis of units: the anatomy leaves these dims out


def linear(r: Rules) -> Dims:
    """x (..., I), weight (O, I), bias (O) -> (..., O)."""
    x, weight, bias = r.of(r.arg(0)), r.of(r.arg(1)), r.arg(2, "bias")
    r.unify(x[-1], weight[-1])
    r.use((0,), len(x) - 1, x[-1])
    if len(weight) == 1:
        return x[:-1]
    if bias is not None:
        r.unify(weight[0], r.of(bias)[0])
    r.role(weight[0], "neurons")
    return [*x[:-1], weight[0]]


def matmul(r: Rules) -> Dims:
    """(..., n, k) @ (..., k, m); 1-D operands as in numpy; batch dims broadcast."""
    return matmul_of(r, 0, 1)


def matmul_of(r: Rules, first: int, second: int) -> Dims:
    """As `matmul`, of the arguments at two positions."""
    a, b = r.of(r.arg(first)), r.of(r.arg(second))
    left, right = a[-1], b[-2] if len(b) > 1 else b[-1]
    r.unify(left, right)
    r.use((first,), len(a) - 1, left)
    r.use((second,), len(b) - 2 if len(b) > 1 else 0, right)
    batch = r.broadcast(a[:-2], b[:-2])
    weights = [_is_weight(r.arg(i)) for i in (first, second)]
    if not any(weights) and len(a) > 2 and len(b) > 2:  # attention written out
        for dim in batch:  # heads may be merged with the batch
            r.role(dim, "heads")
        r.role(left, "head-size")
        r.role(b[-1], "head-size")
    elif weights[1] and len(b) > 1:
        r.role(b[-1], "neurons")
    elif weights[0] and len(a) > 1:
        r.role(a[-2], "neurons")
    return batch + ([a[-2]] if len(a) > 1 else []) + ([b[-1]] if len(b) > 1 else [])


_MOVES = (aten.index.Tensor, aten.transpose.int, aten.permute.default, aten.view.default)


def _is_weight(node: Any) -> bool:
    """A parameter, masked or not, or some of its rows: the experts that a router chose."""
    while node.op == "call_function" and (node.target in _MOVES or node.target is MASK):
        node = node.args[1 if node.target is MASK else 0]
    return bool(node.op == "get_attr")


def addmm(r: Rules) -> Dims:
    """input + a @ b (also baddbmm, addmv)."""
    return r.broadcast(matmul_of(r, 1, 2), r.of(r.arg(0)))


def convolution(r: Rules) -> Dims:
    """x (N, C, *), weight (O, C/groups, *k), bias (O) -> (N, O, *)."""
    groups = r.arg(6, "groups", 1)
    x, weight = r.of(r.arg(0)), r.of(r.arg(1))
    batched = len(x) == len(weight)
    channel = x[1] if batched else x[0]
    if groups == 1:
        r.unify(channel, weight[1])
        r.use((0,), 1 if batched else 0, channel)
        out = weight[0]
    else:
        out = _grouped(r, channel, weight, groups, "groups", 6)
    return _convolved(r, x, weight, out, batched)


def conv_transpose(r: Rules) -> Dims:
    """x (N, C, *), weight (C, O/groups, *k), bias (O) -> (N, O, *)."""
    groups = r.arg(6, "groups", 1)
    x, weight = r.of(r.arg(0)), r.of(r.arg(1))
    batched = len(x) == len(weight)
    channel = x[1] if batched else x[0]
    if groups == 1:
        r.unify(channel, weight[0])
        r.use((0,), 1 if batched else 0, channel)
        out = weight[1]
    else:
        group, inner = r.fresh(groups), r.fresh(r.shape(r.arg(1))[0] // groups)
        r.role(group, "groups" if r.shape(r.arg(1))[0] != groups else "channels")
        r.unify(channel, r.product([group, inner]))
        r.unify(weight[0], channel)
        r.literal((6,) if len(r.node.args) > 6 else ("groups",), group)
        if r.shape(r.arg(1))[0] != groups:
            r.use((0,), 1 if batched else 0, channel)
        out = r.product([group, weight[1]])
    return _convolved(r, x, weight, out, batched)


def _grouped(r: Rules, channel: Any, weight: Dims, groups: int, name: str, at: int) -> Any:
    inner = weight[1]
    group = r.fresh(groups)
    if r.shape(r.arg(1))[1] != 1:
        r.role(group, "groups")
    outer = r.fresh(r.shape(r.arg(1))[0] // groups)
    r.unify(channel, r.product([group, inner]))
    r.unify(weight[0], r.product([group, outer]))
    r.literal((at,) if at < len(r.node.args) else (name,), group)
    if r.shape(r.arg(1))[1] != 1:
        r.use((0,), len(r.of(r.arg(0))) - len(weight) + 1, channel)
    return weight[0]


def _convolved(r: Rules, x: Dims, weight: Dims, out: Any, batched: bool) -> Dims:
    bias = r.arg(2, "bias")
    if bias is not None:
        r.unify(out, r.of(bias)[0])
    r.role(out, "channels")
    start = 2 if batched else 1
    r.freeze(weight[2:], KERNEL)
    if _place_by_place(r):
        return [*x[: start - 1], out, *x[start:]]
    r.freeze(x[start:], "spatial window of a convolution")
    spatial = [r.fresh(s, "spatial size of a convolution") for s in r.shape()[start:]]
    return [*x[: start - 1], out, *spatial]


def _place_by_place(r: Rules) -> bool:
    """Whether windows are single places: then spatial dims pass as batch dims do."""

    def all_are(argument: Any, value: int) -> bool:
        return all(a == value for a in (argument if isinstance(argument, list) else [argument]))

    padding = r.arg(4, "padding", 0)
    return (
        all_are(r.shape(r.arg(1))[2:], 1)
        and all_are(r.arg(3, "stride", 1), 1)
        and (isinstance(padding, str) or all_are(padding, 0))
        and (r.node.target not in _TRANSPOSED or all_are(r.arg(5, "output_padding", 0), 0))
    )


_TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
TABLE: dict[Any, Rule] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.bmm.default: matmul,
    aten.mv.default: matmul,
    aten.dot.default: matmul,
    aten.addmm.default: addmm,
    aten.baddbmm.default: addmm,
    aten.addmv.default: addmm,
    aten.conv1d.default: convolution,
    aten.conv2d.default: convolution,
    aten.conv3d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.conv1d.padding: convolution,
    aten.conv3d.padding: convolution,
    **dict.fromkeys(_TRANSPOSED, conv_transpose),
}
