"""Axis rules of the ops of `esper_kernels`.

What is not packed passes as in the ops that a kernel stands for. Packed dims are frozen: outputs in
groups share what they read, and inputs are addressed by an index.
"""

from __future__ import annotations

from typing import Any

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.kernels import PACKED

_INPUTS = "read by a packed weight"
_OUTPUTS = "outputs of a packed weight"


def runs_linear(index: int, scale: int | None, bias: int) -> Rule:
    """x (..., K) and values (N, kept) -> (..., N).

    Args:
        index, scale, bias: positions of those arguments.
    """

    def rule(r: Rules) -> Dims:
        x, outputs = r.of(r.arg(0)), _packed(r, 1, index)
        _along(r, outputs, scale, bias)
        r.freeze(x[-1], _INPUTS)
        return [*x[:-1], outputs]

    return rule


def sparse24_linear(r: Rules) -> Dims:
    """x (..., K), values and metadata in the order of the instruction, bias (N) -> (..., N)."""
    x = r.of(r.arg(0))
    for operand in (1, 2):
        r.freeze(r.of(r.arg(operand)), PACKED)
    outputs = r.fresh(r.arg(5), _OUTPUTS)
    r.role(outputs, "neurons")
    _along(r, outputs, 3)
    r.freeze(x[-1], _INPUTS)
    return [*x[:-1], outputs]


def int8_linear(r: Rules) -> Dims:
    """x (..., K), values (N, K), scale (N), bias (N) -> (..., N)."""
    values = _contract(r, 1)
    _along(r, values[0], 2, 3)
    return [*r.of(r.arg(0))[:-1], values[0]]


def low_rank_linear(r: Rules) -> Dims:
    """x (..., K), down (r, K), up (N, r), bias (N) -> (..., N)."""
    down, up = _contract(r, 1), r.of(r.arg(2))
    r.unify(down[0], up[1])
    r.use((2,), 1, up[1])
    r.role(up[0], "neurons")
    _along(r, up[0], 3)
    return [*r.of(r.arg(0))[:-1], up[0]]


def gated_linear(r: Rules) -> Dims:
    """x (..., K), gate and up (N, K) or packed (N, kept), scales (N) -> (..., N)."""
    x = r.of(r.arg(0))
    if r.arg(5) is None:
        gate, up = _contract(r, 1)[0], _contract(r, 2)[0]
    else:
        gate, up = _packed(r, 1, 5), _packed(r, 2, 6)
        r.freeze(x[-1], _INPUTS)
    r.unify(gate, up)
    _along(r, gate, 3, 4)
    return [*x[:-1], gate]


def attention_projections(r: Rules) -> list[Dims]:
    """x (B, S, K), weight (q | k | v, K), bias -> q (B, H, S, D), k and v (B, G, S, D)."""
    x, weight = r.of(r.arg(0)), r.of(r.arg(1))
    r.unify(x[-1], weight[1])
    r.use((0,), 2, x[-1])
    heads, groups, size = (r.fresh(r.arg(position)) for position in (3, 4, 5))
    for dim, position, role in ((heads, 3, "heads"), (groups, 4, "heads"), (size, 5, "head-size")):
        r.literal((position,), dim)
        r.role(dim, role)
    parts = [r.product([dim, size]) for dim in (heads, groups, groups)]
    r.unify(weight[0], r.total(parts))
    _along(r, weight[0], 2)
    return [[x[0], dim, x[1], size] for dim in (heads, groups, groups)]


def _contract(r: Rules, weight: int) -> Dims:
    """The dims of a weight (N, K) that is multiplied by x."""
    x, dims = r.of(r.arg(0)), r.of(r.arg(weight))
    r.unify(x[-1], dims[1])
    r.use((0,), len(x) - 1, x[-1])
    r.role(dims[0], "neurons")
    return dims


def _packed(r: Rules, values: int, index: int) -> Any:
    """The outputs of a packed weight, frozen as all its dims are."""
    outputs, kept = r.of(r.arg(values))
    r.freeze(kept, PACKED)
    r.freeze(r.of(r.arg(index)), PACKED)
    r.freeze(outputs, _OUTPUTS)
    r.role(outputs, "neurons")
    return outputs


def _along(r: Rules, outputs: Any, *positions: int | None) -> None:
    """Vectors with one number for each output, where they are given."""
    for position in positions:
        if position is not None and r.arg(position) is not None:
            r.unify(outputs, r.of(r.arg(position))[0])
