"""One spelling for ops that PyTorch offers under several names.

`tensor_split`, `hsplit`, `unsafe_chunk` and relatives state their sizes, `narrow` is a slice,
`swapaxes` a transpose, `moveaxis` a movedim, `tile` a repeat, `broadcast_to` an expand, `hstack`
and relatives a cat, and variances name their correction (PyTorch's documentation of each op says
what it is short for). Where a size is symbolic an op stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

Spelled = tuple[Any, tuple[Any, ...], dict[str, Any]] | None


def spell(module: fx.GraphModule) -> None:
    """Rewrite the nodes of `module.graph` in place; values and metadata stay."""
    graph = module.graph
    for node in graph.nodes:
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None:
            continue
        spelled = rule(node)
        if spelled is not None:
            node.target, node.args, node.kwargs = spelled


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def _shape(node: Any) -> Any:
    return node.meta["val"].shape


def _parts(dim: Callable[[fx.Node], int]) -> Callable[[fx.Node], Spelled]:
    def rule(node: fx.Node) -> Spelled:
        along = dim(node)
        sizes = [value.shape[along] for value in node.meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            return None
        return aten.split_with_sizes.default, (node.args[0], sizes, along), {}

    return rule


def _third(node: fx.Node) -> int:
    return int(_argument(node, 2, "dim", 0))


def _narrow(node: fx.Node) -> Spelled:
    x, dim, start, length = (node.args[i] for i in range(4))
    size = _shape(x)[dim]
    if not all(isinstance(value, int) for value in (size, start, length)):
        return None
    begin = start + size if start < 0 else start  # type: ignore[operator]
    return aten.slice.Tensor, (x, dim, begin, begin + length), {}  # type: ignore[operator]


def _tile(node: fx.Node) -> Spelled:
    x, counts = node.args
    lead = len(_shape(x)) - len(counts)  # type: ignore[arg-type]
    return aten.repeat.default, (x, [1] * lead + list(counts)), {}  # type: ignore[arg-type]


def _reshape(node: fx.Node) -> Spelled:
    """The sizes of another operand are taken from it, its units are not."""
    sizes = [size if isinstance(size, int) else -1 for size in _shape(node)]
    if sizes.count(-1) > 1:
        return None
    return aten.reshape.default, (node.args[0], sizes), {}


def _stacked(dim: int, rank: int) -> Callable[[fx.Node], Spelled]:
    """A cat along `dim`, if the operands have that many dims already."""

    def rule(node: fx.Node) -> Spelled:
        tensors: Any = node.args[0]
        if any(len(_shape(tensor)) < rank for tensor in tensors):
            return None
        return aten.cat.default, (tensors, dim), {}

    return rule


def _moments(target: Any) -> Callable[[fx.Node], Spelled]:
    """(x, unbiased) or (x, dim, unbiased, keepdim) -> (x, dim, correction=, keepdim=)."""

    def rule(node: fx.Node) -> Spelled:
        overall = node.target._overloadname == "default"  # type: ignore[union-attr]
        unbiased = _argument(node, 1 if overall else 2, "unbiased", True)
        dim = None if overall else _argument(node, 1, "dim")
        keepdim = False if overall else _argument(node, 3, "keepdim", False)
        return target, (node.args[0], dim), {"correction": int(unbiased), "keepdim": keepdim}

    return rule


def _same(target: Any) -> Callable[[fx.Node], Spelled]:
    return lambda node: (target, node.args, node.kwargs)


_RULES: dict[Any, Callable[[fx.Node], Spelled]] = {
    **{
        op: _parts(_third)
        for op in (
            aten.tensor_split.sections,
            aten.tensor_split.indices,
            aten.unsafe_chunk.default,
            aten.unsafe_split.Tensor,
            aten.unsafe_split_with_sizes.default,
        )
    },
    **{op: _parts(lambda node: 0) for op in (aten.vsplit.int, aten.vsplit.array)},
    **{
        op: _parts(lambda node: min(1, len(_shape(node.args[0])) - 1))
        for op in (aten.hsplit.int, aten.hsplit.array)
    },
    **{op: _parts(lambda node: 2) for op in (aten.dsplit.int, aten.dsplit.array)},
    aten.narrow.default: _narrow,
    aten.reshape_as.default: _reshape,
    aten.view_as.default: _reshape,
    aten.concatenate.default: lambda node: (aten.cat.default, node.args, dict(node.kwargs)),
    aten.swapaxes.default: _same(aten.transpose.int),
    aten.swapdims.default: _same(aten.transpose.int),
    aten.moveaxis.int: _same(aten.movedim.int),
    aten.moveaxis.intlist: _same(aten.movedim.intlist),
    aten.broadcast_to.default: _same(aten.expand.default),
    aten.tile.default: _tile,
    aten.hstack.default: _stacked(1, 2),
    aten.column_stack.default: _stacked(1, 2),
    aten.vstack.default: _stacked(0, 2),
    aten.dstack.default: _stacked(2, 3),
    **{
        op: _moments(getattr(aten, name).correction)
        for name in ("var", "std", "var_mean", "std_mean")
        for op in (getattr(aten, name).default, getattr(aten, name).dim)
    },
}
