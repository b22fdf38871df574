"""Training and evaluation modes, and device literals, of a traced graph.

A node that behaves differently in the two modes carries `meta["modes"]`: argument path ->
(value in eval, value in train). A batch norm that counts its batches names the counter in
`meta["counter"]`; the counting node exists only in training mode, as in the original module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Path = tuple[int | str, ...]


def get_path(node: fx.Node, path: Path) -> Any:
    """Value at an argument path."""
    value: Any = node.kwargs if isinstance(path[0], str) else node.args
    for step in path:
        value = value[step]
    return value


def set_path(node: fx.Node, path: Path, value: Any) -> None:
    """Replace the value at an argument path."""

    def put(container: Any, steps: Path) -> Any:
        if not steps:
            return value
        if isinstance(container, dict):
            return {**container, steps[0]: put(container[steps[0]], steps[1:])}
        items = list(container)
        at = int(steps[0])
        items[at] = put(items[at], steps[1:])
        return tuple(items) if isinstance(container, tuple) else items

    if isinstance(path[0], str):
        node.kwargs = put(node.kwargs, path)
    else:
        node.args = put(node.args, path)


def set_mode(graph: fx.Graph, training: bool) -> bool:
    """Flip every mode-dependent node; returns whether anything changed."""
    changed = False
    for node in list(graph.nodes):
        for path, values in node.meta.get("modes", {}).items():
            wanted = values[int(training)]
            if get_path(node, path) != wanted:
                set_path(node, path, wanted)
                changed = True
        counter = node.meta.get("counter")
        if counter is not None:
            changed |= _count(graph, node, counter, training)
    return changed


def _count(graph: fx.Graph, node: fx.Node, counter: str, training: bool) -> bool:
    present = [
        user
        for other in graph.find_nodes(op="get_attr", target=counter)
        for user in other.users
        if user.target is aten.add_.Tensor
    ]
    if training and not present:
        existing = list(graph.find_nodes(op="get_attr", target=counter))
        with graph.inserting_before(node):
            if existing:
                read = existing[0]
            else:
                read = graph.get_attr(counter)
                mean: Any = node.args[3]
                value = mean.meta["val"].new_zeros((), dtype=torch.int64)
                read.meta = {"val": value, "module": node.meta.get("module", ""), "source": ""}
            add = graph.call_function(aten.add_.Tensor, (read, 1))
            add.meta = {**read.meta, "module": node.meta.get("module", "")}
            # The name that it had: training code is then the same text after each evaluation.
            name = node.meta.get("counting")
            if name is not None and all(other.name != name for other in graph.nodes):
                add.name = name
        return True
    if not training and present:
        for add in present:
            node.meta["counting"] = add.name
            graph.erase_node(add)
        return True
    return False


def set_device(graph: fx.Graph, device: torch.device) -> None:
    """Point device literals (`arange(device=...)`, `to(device)`) at another device."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in graph.nodes:
        node.args = tuple(moved(value) for value in node.args)
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": moved(node.kwargs["device"])}
