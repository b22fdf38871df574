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


def packed_linear(index: int, scale: int | None, bias: int) -> Rule:
    """x (..., K) and packed values (N, kept) -> (..., N).

    Args:
        index, scale, bias: positions of those arguments.
    """

    def rule(r: Rules) -> Dims:
        x, outputs = r.of(r.arg(0)), _packed(r, 1, index)
        _along(r, outputs, scale, bias)
        r.freeze(x[-1], _INPUTS)
        return [*x[:-1], outputs]

    return rule


def int8_linear(r: Rules) -> Dims:
    """x (..., K), values (N, K), scale (N), bias (N) -> (..., N)."""
    x, values = r.of(r.arg(0)), r.of(r.arg(1))
    _contract(r, values)
    _along(r, values[0], 2, 3)
    return [*x[:-1], values[0]]


def _contract(r: Rules, weight: Dims) -> None:
    x = r.of(r.arg(0))
    r.unify(x[-1], weight[1])
    r.use((0,), len(x) - 1, x[-1])
    r.role(weight[0], "neurons")


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
