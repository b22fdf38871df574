"""Symbolic sizes in files: a fresh shape environment with the symbols of the old one.

Everything that touches the private parts of `torch.fx.experimental.symbolic_shapes` and sympy
lives here. Expressions are stored as trees and never evaluated as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from esper.ir.codec import CodecError

_NAME = re.compile(r"s\d{1,9}")
_LIMIT = 2**62
_MAX_DEPTH = 16
_MAX_TERMS = 64


def expression(size: Any) -> Any:
    """A size (int or SymInt) as JSON: an int, a symbol's name, or `[op, operand, ...]`.

    Raises CodecError for an expression with other operations than `+ * ** // % max min`.
    """
    if isinstance(size, int):
        return size
    return _encode(size.node.expr)


def _encode(expr: Any) -> Any:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        if not _NAME.fullmatch(expr.name):
            raise CodecError(f"the size {expr} of an input depends on data")
        return expr.name
    name = type(expr).__name__
    op = {"Add": "+", "Mul": "*", "Pow": "**", "FloorDiv": "//", "CleanDiv": "//"}.get(name)
    op = op or {"Mod": "%", "PythonMod": "%", "Max": "max", "Min": "min"}.get(name)
    if op is None:
        raise CodecError(f"the symbolic size {expr} uses {name}, which cannot be saved")
    return [op, *map(_encode, expr.args)]


def describe_symbols(values: Iterable[Any]) -> dict[str, dict[str, int | None]]:
    """Symbols of fake tensors and SymInts: name -> example size (`hint`), `min` and `max`."""
    found: dict[str, dict[str, int | None]] = {}
    for value in values:
        sizes = [*value.shape, *value.stride()] if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if not isinstance(size, torch.SymInt):
                continue
            env = size.node.shape_env
            for symbol in size.node.expr.free_symbols:
                bounds = env.var_to_range[symbol]
                found[symbol.name] = {
                    "hint": int(_hints(env)[symbol]),
                    "min": _bound(bounds.lower),
                    "max": _bound(bounds.upper),
                }
    return dict(sorted(found.items()))


def _hints(env: Any) -> Any:
    # Renamed in PyTorch 2.12; the old name warns there.
    current = getattr(env, "backed_var_to_val", None)
    return env.var_to_val if current is None else current


def _bound(value: Any) -> int | None:
    return int(value) if value.is_Integer else None


class Symbols:
    """A fake-tensor mode whose shape environment holds the given symbols.

    Args:
        described: as `describe_symbols` returns.

    Raises:
        CodecError: on a name, hint or range that makes no sense.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        if not isinstance(described, dict) or len(described) > 1000:
            raise CodecError("its symbols are not listed as they should be")
        self._env = ShapeEnv()
        self._symbols: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        # Kernels must not run on load: an op without a shape function is an error instead.
        self.mode = FakeTensorMode(
            shape_env=self._env, allow_non_fake_inputs=True, allow_fallback_kernels=False
        )
        for name, facts in described.items():
            self._add(name, facts)

    def _add(self, name: Any, facts: Any) -> None:
        import sympy
        from torch.utils._sympy.numbers import int_oo

        hint, low, high = (facts[key] for key in ("hint", "min", "max"))
        numbers = [n for n in (hint, low, high) if n is not None]
        if (
            type(name) is not str
            or not _NAME.fullmatch(name)
            or any(type(n) is not int or not 0 <= n < _LIMIT for n in numbers)
            or hint is None
            or not (low or 0) <= hint <= (hint if high is None else high)
        ):
            raise CodecError("a symbol's name, example size or range makes no sense")
        symbol = sympy.Symbol(name, positive=True, integer=True)
        if hasattr(self._env, "add_backed_var_to_val"):
            self._env.add_backed_var_to_val(symbol, hint)
        else:
            self._env.add_var_to_val(symbol, hint)
        self._env.constrain_symbol_range(
            symbol, compiler_min=low or 0, compiler_max=int_oo if high is None else high
        )
        self._symbols[name] = symbol
        self._sizes[name] = hint

    def size(self, tree: Any) -> Any:
        """An int or SymInt from a stored expression. Raises CodecError."""
        if type(tree) is int:
            if not -_LIMIT < tree < _LIMIT:
                raise CodecError("a size is out of range")
            return tree
        expr, hint = self._decode(tree, 0)
        return self._env.create_symintnode(expr, hint=hint)

    def _decode(self, tree: Any, depth: int) -> tuple[Any, int]:
        import sympy

        if type(tree) is int and -_LIMIT < tree < _LIMIT:
            return sympy.Integer(tree), tree
        if type(tree) is str and tree in self._symbols:
            return self._symbols[tree], self._sizes[tree]
        if type(tree) is not list or not 2 <= len(tree) <= _MAX_TERMS or depth > _MAX_DEPTH:
            raise CodecError("a symbolic size is not encoded as it should be")
        operands = [self._decode(item, depth + 1) for item in tree[1:]]
        expr, hint = operands[0]
        for other, value in operands[1:]:
            expr, hint = _apply(tree[0], expr, hint, other, value)
            if not -_LIMIT < hint < _LIMIT:
                raise CodecError("a symbolic size is out of range")
        return expr, hint


def _apply(op: Any, a: Any, x: int, b: Any, y: int) -> tuple[Any, int]:
    from torch.utils._sympy import functions

    made: dict[str, Any] = vars(functions)
    if op == "+":
        return a + b, x + y
    if op == "*":
        return a * b, x * y
    if op == "**" and 0 <= y <= 8:
        return a**b, x**y
    if op == "//" and y > 0:
        return made["FloorDiv"](a, b), x // y
    if op == "%" and y > 0:
        return made["Mod"](a, b), x % y
    if op == "max":
        return made["Max"](a, b), max(x, y)
    if op == "min":
        return made["Min"](a, b), min(x, y)
    raise CodecError("a symbolic size is not encoded as it should be")


def bounded(value: Any) -> bool:
    """Whether the sizes and numbers of a fake value fit 62 bits (for values computed on load)."""
    if isinstance(value, (list, tuple)):
        return all(map(bounded, value))
    if isinstance(value, torch.Tensor):
        return all(map(bounded, value.shape))
    if isinstance(value, torch.SymInt):
        hint = value.node.hint if value.node.has_hint() else 0
        return -_LIMIT < hint < _LIMIT
    return not isinstance(value, int) or -_LIMIT < value < _LIMIT
