"""Attributes of the user's module whose names a Model needs for itself."""

from __future__ import annotations

from typing import Any

from torch import fx

from esper.ir.model import Model


def rename_reserved(exported: fx.GraphModule) -> dict[str, str]:
    """Rename top-level tensors and submodules that a Model's own attributes would hide.

    Returns old name -> new name: `table` becomes `table_`.
    """
    tables: tuple[dict[str, Any], ...] = (
        exported._modules,
        exported._parameters,
        exported._buffers,
    )
    every = {name for table in tables for name in table}
    renamed: dict[str, str] = {}
    for name in sorted(every):
        if hasattr(Model, name):
            new = f"{name}_"
            while new in every or hasattr(Model, new):
                new += "_"
            renamed[name] = new
    if not renamed:
        return renamed
    for table in tables:
        items = [(renamed.get(name, name), value) for name, value in table.items()]
        table.clear()
        table.update(items)
    hidden = exported._non_persistent_buffers_set
    exported._non_persistent_buffers_set = {renamed.get(name, name) for name in hidden}
    for node in exported.graph.find_nodes(op="get_attr"):
        node.target = renamed_path(str(node.target), renamed)
    return renamed


def renamed_path(path: str, renamed: dict[str, str]) -> str:
    """A dotted path with its first part renamed."""
    head, dot, rest = path.partition(".")
    return f"{renamed.get(head, head)}{dot}{rest}"
