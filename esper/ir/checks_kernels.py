"""Checks of lowered models: what kernels read is packed as they expect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper.ir.kernels import kernel
from esper.ir.printer import print_node

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.scope import Scope


def packed(model: Model, scope: Scope) -> Iterator[str]:
    """packed: indices and metadata of packed weights are such as the kernel of each node reads."""
    for node in scope.nodes:
        found = kernel(node.target)
        if found is not None:
            for problem in found.check(model, node):
                yield f"packed: {problem}: {print_node(model, node)}"
