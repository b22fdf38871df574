"""Element-wise ops: dims unify after broadcasting (PyTorch docs, "Broadcasting semantics")."""

from __future__ import annotations

import operator
from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def pointwise(r: Rules) -> Dims:
    """Any op tagged pointwise: all tensor operands broadcast together."""
    operands = [r.of(n) for n in r.node.all_input_nodes if r.dims.get(n) is not None]
    return r.broadcast(*operands)


def same(r: Rules) -> Any:
    """Ops whose result has the dims of their first operand."""
    return r.of(r.arg(0))


def scalar(r: Rules) -> None:
    """Arithmetic on symbolic sizes: no tensor dims. Static sizes are literals by now."""


def getitem(r: Rules) -> Any:
    """An element of a list-valued op."""
    value = r.dims[r.arg(0)]
    return value[r.arg(1)] if isinstance(value, (list, tuple)) else None


def sym_size(r: Rules) -> None:
    """A size read at run time follows the tensor by itself."""


def cast(r: Rules) -> Dims:
    """`to` and relatives: dtype and device change, dims do not."""
    operands = [n for n in r.node.all_input_nodes if r.dims.get(n) is not None]
    return r.of(operands[0])


def glu(r: Rules) -> Dims:
    """The dim holds two equal halves, value | gate, that act as one."""
    dims, dim = list(r.of(r.arg(0))), r.arg(1, "dim", -1)
    size = r.shape(r.arg(0))[dim]
    if not isinstance(size, int):
        r.freeze(dims[dim], "glu over a symbolic size")
        dims[dim] = r.fresh(r.shape()[dim], "glu over a symbolic size")
        return dims
    value, gate = r.split(dims[dim], [size // 2, size // 2])
    r.unify(value, gate)
    dims[dim] = value
    return dims


def prelu(r: Rules) -> Dims:
    """A slope per channel (dim 1), or one for all."""
    dims, weight = r.of(r.arg(0)), r.of(r.arg(1))
    if weight and len(dims) > 1 and r.shape(r.arg(1))[-1] != 1:
        r.unify(dims[1], weight[-1])
    return dims


TABLE: dict[Any, Rule] = {
    operator.getitem: getitem,
    aten.sym_size.int: sym_size,
    aten.dropout.default: same,
    aten.feature_dropout.default: same,
    aten.alpha_dropout.default: same,
    aten.contiguous.default: same,
    aten.clone.default: same,
    aten.detach.default: same,
    aten.detach_.default: same,
    aten.alias.default: same,
    aten.zeros_like.default: same,
    aten.ones_like.default: same,
    aten.empty_like.default: same,
    aten.full_like.default: same,
    aten.rand_like.default: same,
    aten.randn_like.default: same,
    aten.lift_fresh_copy.default: same,
    aten.__and__.Tensor: pointwise,
    aten.__or__.Tensor: pointwise,
    aten.__xor__.Tensor: pointwise,
    aten.masked_fill.Scalar: pointwise,
    aten.masked_fill.Tensor: pointwise,
    aten.where.self: pointwise,
    aten.where.ScalarSelf: pointwise,
    aten.where.ScalarOther: pointwise,
    aten.glu.default: glu,
    aten.prelu.default: prelu,
    aten._to_copy.default: cast,
    aten.to.device: cast,
    aten.to.dtype: cast,
    aten.to.dtype_layout: cast,
    aten.to.other: cast,
    aten.type_as.default: cast,
    aten.sym_numel.default: scalar,
    aten._assert_scalar.default: scalar,
    torch.sym_max: scalar,
    torch.sym_min: scalar,
    torch.sym_float: scalar,
    torch.sym_int: scalar,
    operator.add: scalar,
    operator.sub: scalar,
    operator.mul: scalar,
    operator.floordiv: scalar,
    operator.truediv: scalar,
    operator.mod: scalar,
    operator.pow: scalar,
    operator.neg: scalar,
    operator.eq: scalar,
    operator.ne: scalar,
    operator.lt: scalar,
    operator.le: scalar,
    operator.gt: scalar,
    operator.ge: scalar,
}
