"""`esper.Slot`: the user says in the model's own code where growth may happen."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_KEY = "slots"  # of a node's metadata, while tracing


class Slot(torch.nn.Module):
    """An identity that marks a value; after tracing the place is `slot:<path>` and costs nothing.

    It has no tensors, so adding it to a model leaves its state dict as it is.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The value itself."""
        marked: torch.Tensor = aten.alias.default(x)
        return marked


_NAME = f"{Slot.__module__}.{Slot.__qualname__}"


def take_markers(graph: fx.Graph) -> None:
    """Erase the markers of an exported graph; the values that they mark remember their paths."""
    for node in list(graph.find_nodes(op="call_function", target=aten.alias.default)):
        path = _marker(node)
        if path is None:
            continue
        value = node.args[0]
        assert isinstance(value, fx.Node)
        value.meta[_KEY] = (*value.meta.get(_KEY, ()), (path, node.name))
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def marked(graph: fx.Graph) -> dict[str, str]:
    """Slot ID -> name of the node that computes the value, in graph order.

    A marker that is passed several times marks `slot:<path>`, `slot:<path>.2`, ...
    """
    places: dict[str, dict[str, str]] = {}
    for node in graph.nodes:
        for path, marker in node.meta.get(_KEY, ()):
            # A value that was spelled out as several nodes is what the last of them computes.
            places.setdefault(path, {})[marker] = node.name
    return {
        f"slot:{path}" if number == 1 else f"slot:{path}.{number}": name
        for path, names in places.items()
        for number, name in enumerate(names.values(), 1)
    }


def _marker(node: fx.Node) -> str | None:
    """Path of the marker that made this node; None for an alias of another origin."""
    stack: list[tuple[str, Any]] = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(path).removeprefix("L__self__.") if name == _NAME else None
