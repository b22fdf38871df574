"""Op rules of the axis analysis: explicit tables by family, one registry.

To add an op: write a function of `esper.ir.axes.Rules` that equates dims and returns the dims of
the result, and add it to a family's table (or call `esper.register_axis_rule` from user code).
"""

from __future__ import annotations

from typing import Any

import torch

from esper.errors import UsageError
from esper.ir.axes import Rule
from esper.ir.kernels import kernel
from esper.ir.rules import (
    address,
    attention,
    contraction,
    einsum,
    elementwise,
    index,
    join,
    norm,
    opaque,
    pool,
    products,
    recurrent,
    reduction,
    shape,
    spectral,
    window,
)


class Registry:
    """Maps call targets to rules.

    Falls back to the rules that kernel libraries bring, and to the element-wise rule for ops tagged
    pointwise.
    """

    def __init__(self, *tables: dict[Any, Rule]) -> None:
        self._rules: dict[Any, Rule] = {}
        for table in tables:
            for target, rule in table.items():
                self.add(target, rule)

    def add(self, target: Any, rule: Rule) -> None:
        """Register a rule; a second rule for the same op is an error."""
        if target in self._rules:
            raise UsageError(f"an axis rule for {target} is already registered")
        self._rules[target] = rule

    def lookup(self, target: Any) -> Rule | None:
        """The rule of a call target, or None: then whatever the op touches is frozen."""
        rule = self._rules.get(target)
        if rule is not None:
            return rule
        if (found := kernel(target)) is not None:
            return found.rule
        pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
        if not pointwise:
            return None
        # In-place ops that survive tracing write to views or parameters: the result is the first
        # operand, whatever its size; `out=` variants write to another and have no rule.
        if not target._schema.is_mutable:
            return elementwise.pointwise
        written = [a.alias_info is not None for a in target._schema.arguments]
        return elementwise.inplace if written[0] and not any(written[1:]) else None

    def moves(self, target: Any) -> bool:
        """Whether an op only moves the values of its first operand."""
        return target in shape.MOVES


REGISTRY = Registry(
    elementwise.TABLE,
    contraction.TABLE,
    products.TABLE,
    einsum.TABLE,
    recurrent.TABLE,
    attention.TABLE,
    norm.TABLE,
    shape.TABLE,
    join.TABLE,
    window.TABLE,
    index.TABLE,
    address.TABLE,
    reduction.TABLE,
    pool.TABLE,
    spectral.TABLE,
    opaque.TABLE,
)


def register_axis_rule(target: Any, rule: Rule) -> None:
    """Teach the axis analysis an op, by its call target, before models that use it are traced.

    Raises UsageError when the op has a rule already.
    """
    REGISTRY.add(target, rule)
