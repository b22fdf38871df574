"""What nodes are computed from."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and all that is behind them."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found
