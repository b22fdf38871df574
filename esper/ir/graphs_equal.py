"""Structural comparison of two graphs up to the names of nodes and symbols."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from esper.ir.printer import op_name
from esper.ir.shapes import describe

_SYMBOL = re.compile(r"\b[su]\d+\b")


def graphs_equal(a: fx.GraphModule, b: fx.GraphModule) -> str | None:
    """None when both graphs compute the same in the same way, else the first difference in words.

    Followed from the outputs back, so the order of independent nodes does not matter. Ops,
    literals, modes, tensor names, shapes and dtypes must be equal; names of nodes and of symbolic
    sizes may differ. Nodes that nothing reads (such as batch counters) are compared in order.
    Values of tensors are not compared.
    """
    return _Comparison(a, b).run()


class _Comparison:
    def __init__(self, a: fx.GraphModule, b: fx.GraphModule) -> None:
        self._a, self._b = a, b
        self._partner: dict[fx.Node, fx.Node] = {}
        self._back: dict[fx.Node, fx.Node] = {}
        self._symbols: dict[str, str] = {}

    def run(self) -> str | None:
        inputs = [[n for n in g.graph.nodes if n.op == "placeholder"] for g in (self._a, self._b)]
        if len(inputs[0]) != len(inputs[1]):
            return f"{len(inputs[0])} inputs against {len(inputs[1])}"
        roots = [_roots(self._a), _roots(self._b)]
        if len(roots[0]) != len(roots[1]):
            return f"{len(roots[0]) - 1} nodes without readers against {len(roots[1]) - 1}"
        pairs = [*zip(*inputs, strict=True), *reversed([*zip(*roots, strict=True)])]
        pending = pairs[::-1]
        for x, y in pairs:
            if x.op == "placeholder":
                self._pair(x, y)
        done: set[fx.Node] = set()
        while pending:
            x, y = pending.pop()
            if self._partner.get(x) is y and x in done:
                continue
            if not self._pair(x, y):
                return f"%{x.name} and %{y.name} play different parts"
            done.add(x)
            if (difference := self._differ(x, y, pending)) is not None:
                return difference
        return None

    def _pair(self, x: fx.Node, y: fx.Node) -> bool:
        if x.op == "get_attr" and y.op == "get_attr":
            return True  # a tensor may be read once or many times
        return self._partner.setdefault(x, y) is y and self._back.setdefault(y, x) is x

    def _differ(self, x: fx.Node, y: fx.Node, pending: list[Any]) -> str | None:
        where = f"%{x.name} against %{y.name}"
        if x.op != y.op:
            return f"{where}: {x.op} against {y.op}"
        if x.op == "get_attr" and x.target != y.target:
            return f"{where}: tensor {x.target} against {y.target}"
        if x.op == "call_function" and x.target != y.target:
            return f"{where}: {op_name(x.target)} against {op_name(y.target)}"
        if x.op in ("placeholder", "call_function", "get_attr"):
            texts = [_described(module, n) for module, n in ((self._a, x), (self._b, y))]
            if not self._same_text(*texts):
                return f"{where}: {texts[0]} against {texts[1]}"
        for what, p, q in (
            ("arguments", list(x.args), list(y.args)),
            ("keyword arguments", dict(x.kwargs), dict(y.kwargs)),
        ):
            if (difference := self._values(p, q, pending)) is not None:
                return f"{where}: {what} differ: {difference}"
        if x.meta.get("modes", {}) != y.meta.get("modes", {}):
            return f"{where}: other behaviour in training"
        if x.meta.get("counter") != y.meta.get("counter"):
            return f"{where}: other batch counter"
        return None

    def _same_text(self, a: str, b: str) -> bool:
        """Equal after renaming symbols one to one."""
        left, right = _SYMBOL.findall(a), _SYMBOL.findall(b)
        if len(left) != len(right) or _SYMBOL.sub("", a) != _SYMBOL.sub("", b):
            return False
        for p, q in zip(left, right, strict=True):
            if self._symbols.setdefault(p, q) != q:
                return False
        return len(set(self._symbols.values())) == len(self._symbols)

    def _values(self, p: Any, q: Any, pending: list[Any]) -> str | None:
        if isinstance(p, fx.Node) and isinstance(q, fx.Node):
            pending.append((p, q))
            return None
        if isinstance(p, (list, tuple)) and isinstance(q, (list, tuple)):
            if len(p) != len(q):
                return f"{len(p)} items against {len(q)}"
            found = (self._values(x, y, pending) for x, y in zip(p, q, strict=True))
            return next((difference for difference in found if difference is not None), None)
        if isinstance(p, dict) and isinstance(q, dict):
            if p.keys() != q.keys():
                return f"names {sorted(p)} against {sorted(q)}"
            return self._values([p[k] for k in sorted(p)], [q[k] for k in sorted(p)], pending)
        if type(p) is type(q) and (p == q or (p != p and q != q)):
            return None
        return f"{_text(p)} against {_text(q)}"


def _roots(module: fx.GraphModule) -> list[fx.Node]:
    """The output, and what has effects only."""
    nodes = list(module.graph.nodes)
    silent = [n for n in nodes if n.op == "call_function" and not n.users]
    return [*silent, nodes[-1]]


def _described(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "get_attr":
        path, _, leaf = str(node.target).rpartition(".")
        return describe(getattr(module.get_submodule(path), leaf, None))
    return describe(node.meta.get("val"))


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, (torch.dtype, torch.device, torch.layout, int, float, str, type(None))):
        return repr(value)
    return f"<{type(value).__name__}>"
