"""In-place ops of a traced graph become functional where nobody can tell the difference.

`y += 1` on a value, or on a view of it, is `y = y + 1` if no other name for the same memory is
read afterwards; `x[:, 3] = y` is a `select_scatter` of `x` under the same condition. Whatever
does not fit stays in place, and the axis analysis then freezes what it touches.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Ops that may hand back their operand though their schemas do not say so.
_SOMETIMES_VIEWS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.type_as.default,
}

# A view of a part -> the op that makes a copy of the whole in which that part is replaced.
_SCATTERS = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
}

Order = dict[fx.Node, float]


def functionalize(graph: fx.Graph) -> None:
    """Rewrite the graph in place; metadata is kept for every new node."""
    order: Order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        written, copies = node.args[0], node.target is aten.copy_.default
        variant = None if copies else functional_variant(node.target)
        if variant is None and not copies:
            continue
        chain = _chain(written)
        root = chain[-1]
        if root.op != "call_function":
            continue
        if not copies and _unread(root, {written}, node, order):
            node.target = variant
            _replace_later(written, node, order, node)
        elif all(view.target in _SCATTERS for view in chain[:-1]) and _unread(
            root, {root, written}, node, order
        ):
            _scatter(graph, node, chain, variant, order)


def functional_variant(target: Any) -> Any | None:
    """`aten.relu` for `aten.relu_`, or None."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.split("::")[1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _chain(written: fx.Node) -> list[fx.Node]:
    """A value, what it is a view of, and so on to the value that owns the memory."""
    chain = [written]
    while (base := _viewed(chain[-1])) is not None:
        chain.append(base)
    return chain


def _unread(root: fx.Node, besides: set[fx.Node], node: fx.Node, order: Order) -> bool:
    """Whether no value that shares the memory of `root`, besides those, is read after `node`."""
    shared, pending = {root}, [root]
    while pending:
        value = pending.pop()
        views = [user for user in value.users if _viewed(user) is value and user not in shared]
        views = [view for view in views if order[view] < order[node]]
        shared.update(views)
        pending += views
    users = {user for value in shared - besides for user in value.users}
    return all(order[user] < order[node] or user is node for user in users)


def _viewed(node: fx.Node) -> fx.Node | None:
    """The operand whose memory a value shares, or may share."""
    if node.op != "call_function" or not node.args:
        return None
    first = node.args[0]
    if node.target is operator.getitem or node.target in _SOMETIMES_VIEWS:
        return first if isinstance(first, fx.Node) else None
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for argument, operand in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and isinstance(operand, fx.Node):
            return operand
    return None


def _scatter(
    graph: fx.Graph, node: fx.Node, chain: list[fx.Node], variant: Any, order: Order
) -> None:
    """The written part, computed beside the whole, is put into copies of what it is a view of."""
    written, root = chain[0], chain[-1]
    if variant is None:
        value: Any = node.args[1]
        if not isinstance(value, fx.Node) or not _alike(value, written):
            return
    else:
        value = node
        node.target = variant
    last = node
    for view, base in itertools.pairwise(chain):
        with graph.inserting_after(last):
            made = graph.call_function(
                _SCATTERS[view.target],  # type: ignore[index]
                (base, value, *view.args[1:]),
                dict(view.kwargs),
            )
        made.meta = {**node.meta, "val": base.meta.get("val")}
        order[made] = order[node]
        value = last = made
    if variant is None:
        node.replace_all_uses_with(node.args[1])  # type: ignore[arg-type]
        _replace_later(written, node.args[1], order, node)  # type: ignore[arg-type]
        graph.erase_node(node)
    elif written is not root:
        _replace_later(written, node, order, node)
    _replace_later(root, value, order, node)


def _alike(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val")
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return False
    return x.dtype == y.dtype and list(map(str, x.shape)) == list(map(str, y.shape))


def _replace_later(old: fx.Node, new: fx.Node, order: Order, node: fx.Node) -> None:
    """Users behind `node` read the new value."""
    for user in [user for user in old.users if order[user] > order[node]]:
        user.replace_input_with(old, new)
