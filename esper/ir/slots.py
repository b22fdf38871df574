"""Slots that the user declared, and slots that the ecology remembers."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.errors import UsageError
from esper.ir.ecology import SlotLife
from esper.ir.regions import Slot, slot_at

if TYPE_CHECKING:
    from esper.ir.model import Model


def known_slots(model: Model) -> dict[str, Slot]:
    """Slots of which the ecology knows the place, as far as it lives."""
    nodes = model.nodes
    found: dict[str, Slot] = {}
    for name, life in model.ecology.slots().items():
        slot = slot_at(name, nodes[life.input]) if life.input in nodes else None
        if slot is not None:
            found[name] = slot
    return found


def declare(model: Model, *globs: str) -> list[str]:
    """Make the outputs of modules slots, by glob over module paths; `*` stays within one name.

    A module that gives several values, or none of floating point, has no slot.

    Returns:
        The IDs, `slot:<path>.out`.

    Raises:
        UsageError: a glob matches no module that gives one value.
    """
    outputs = _outputs(model) if globs else {}
    declared: dict[str, None] = {}
    for glob in globs:
        paths = [path for path in outputs if _matches(path, glob)]
        if not paths:
            near = get_close_matches(glob, outputs, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"no module that gives one value matches {glob!r}{hint}")
        for path in paths:
            name = f"slot:{path}.out"
            if not model.ecology.slot(name).input:
                model.ecology.set(name, SlotLife(input=outputs[path].name))
            declared[name] = None
    if declared:
        model.invalidate(table=False)
    return list(declared)


def _matches(path: str, glob: str) -> bool:
    pieces, patterns = path.split("."), glob.split(".")
    return len(pieces) == len(patterns) and all(map(fnmatchcase, pieces, patterns))


def _outputs(model: Model) -> dict[str, fx.Node]:
    """Module path -> the one value that leaves the module."""
    members: dict[str, set[fx.Node]] = {}
    for node in model.graph.nodes:
        pieces = str(node.meta.get("module") or "").split(".")
        if node.op == "call_function" and pieces[0]:
            for depth in range(1, len(pieces) + 1):
                members.setdefault(".".join(pieces[:depth]), set()).add(node)
    outputs: dict[str, fx.Node] = {}
    for path, nodes in members.items():
        leaving = [n for n in nodes if _tensor(n) and any(user not in nodes for user in n.users)]
        if len(leaving) == 1 and leaving[0].meta["val"].is_floating_point():
            outputs[path] = leaving[0]
    return outputs


def _tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor)
