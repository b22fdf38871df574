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


def inplace(r: Rules) -> Dims:
    """An element-wise op that writes to its first operand, seen through views by their dims."""
    pointwise(r)
    return r.of(r.arg(0))


def broadcast_tensors(r: Rules) -> list[Dims]:
    """Every tensor with the shape of all of them."""
    operands = [r.of(tensor) for tensor in r.arg(0)]
    result = r.broadcast(*operands)
    return [result] * len(operands)


def meshgrid(r: Rules) -> list[Dims]:
    """Vectors to grids; with `indexing="xy"` the first two dims swap."""
    dims = [r.of(tensor)[0] if r.of(tensor) else r.fresh(1) for tensor in r.arg(0)]
    if r.arg(1, "indexing", "ij") == "xy" and len(dims) > 1:
        dims[:2] = dims[1::-1]
    return [list(dims) for _ in dims]


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
    aten.where.Scalar: pointwise,
    aten.masked_fill_.Scalar: inplace,
    aten.masked_fill_.Tensor: inplace,
    aten.copy_.default: inplace,
    aten.copy.default: inplace,
    aten.fill_.Scalar: inplace,
    aten.fill_.Tensor: inplace,
    aten.fill.Scalar: inplace,
    aten.fill.Tensor: inplace,
    aten.zero_.default: inplace,
    aten.zero.default: inplace,
    aten.normal_.default: inplace,
    aten.uniform_.default: inplace,
    aten.exponential_.default: inplace,
    aten.exponential.default: same,
    aten.bernoulli.default: same,
    aten.bernoulli.p: same,
    aten.rrelu.default: same,
    aten.hardswish.default: same,
    aten.log_sigmoid.default: same,
    aten.feature_alpha_dropout.default: same,
    aten.floor_divide.default: pointwise,
    aten.multiply.Tensor: pointwise,
    aten.multiply.Scalar: pointwise,
    aten.divide.Tensor: pointwise,
    aten.divide.Scalar: pointwise,
    aten.divide.Tensor_mode: pointwise,
    aten.subtract.Tensor: pointwise,
    aten.subtract.Scalar: pointwise,
    aten.greater.Scalar: pointwise,
    aten.greater.Tensor: pointwise,
    aten.less.Scalar: pointwise,
    aten.less.Tensor: pointwise,
    aten.negative.default: same,
    aten.absolute.default: same,
    aten.fix.default: same,
    aten.broadcast_tensors.default: broadcast_tensors,
    aten.meshgrid.default: meshgrid,
    aten.meshgrid.indexing: meshgrid,
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
