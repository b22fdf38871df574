"""Multiply-accumulates per unit of an axis, from recorded shapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

aten = torch.ops.aten
_WEIGHTED = {
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}


def macs(node: fx.Node) -> float:
    """Multiply-accumulates of a node; 0 for ops that contract nothing."""
    if node.target is aten.scaled_dot_product_attention.default:
        q, k, v = (_shape(node.args[i]) for i in range(3))
        return float(math.prod(q[:-1])) * k[-2] * (q[-1] + v[-1])
    if node.target is aten.einsum.default:
        return _einsum(node)
    if node.target not in _WEIGHTED:
        return 0.0
    out = math.prod(_shape(node))
    if node.target is aten.linear.default:
        return float(out * _shape(node.args[0])[-1])
    if node.target in (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default):
        return float(out * _shape(node.args[0])[-1])
    if node.target in (aten.addmm.default, aten.baddbmm.default):
        return float(out * _shape(node.args[1])[-1])
    weight = _shape(node.args[1])
    if "transpose" in str(node.target):
        return float(math.prod(_shape(node.args[0])) * math.prod(weight[1:]))
    return float(out * math.prod(weight[1:]))


def _einsum(node: fx.Node) -> float:
    """Every combination of letters once; several operands are contracted from left to right."""
    equation, operands = node.args[0], node.args[1]
    inputs = str(equation).replace(" ", "").partition("->")[0].split(",")
    if "." in str(equation):
        return 0.0
    sizes = {
        letter: size
        for letters, operand in zip(inputs, operands, strict=True)  # type: ignore[arg-type]
        for letter, size in zip(letters, _shape(operand), strict=True)
    }
    return float(math.prod(sizes.values())) if len(inputs) == 2 else 0.0


def _shape(node: Any) -> list[int]:
    """Sizes with symbols replaced by the hint of the example inputs."""
    return [s if isinstance(s, int) else int(s.node.hint or 1) for s in node.meta["val"].shape]


def unit_costs(model: Model, axes: list[Axis]) -> dict[str, float]:
    """Multiply-accumulates that go when one unit of an axis goes."""
    touching: dict[str, float] = {}
    for node in model.graph.nodes:
        work = macs(node)
        if work:
            touching[node.name] = work
    costs: dict[str, float] = {}
    for axis in axes:
        nodes = {use.node for use in model.table.uses_of.get(axis.atom, ())}
        nodes |= {name for name in model.table.values_of.get(axis.atom, ()) if name in touching}
        costs[axis.id] = sum(touching.get(name, 0.0) for name in nodes) / axis.size
    return costs
