"""Which axes an `axes` option of a pass means."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper.passbase import Remark

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

# `any` means whole units of computation. Head sizes, query heads within a group and the embedding
# width are meant only when named: they change every layer or every head at once.
_ANY = ("heads", "kv-groups", "neurons", "channels", "experts", "groups")


def chosen_axes(model: Model, named: str) -> list[Axis]:
    """Axes that may change size: `any` without lossy ones, a kind, or a glob over IDs."""
    every = [axis for axis in model.anatomy.axes.values() if axis.cuttable]
    if named == "any":
        return [axis for axis in every if axis.kind in _ANY and axis.lossy_reason is None]
    kinds = [axis for axis in every if axis.kind == named]
    return kinds or [axis for axis in every if fnmatch.fnmatchcase(axis.id, named)]


def ruleless(model: Model) -> Iterator[Remark]:
    """One remark for each op without an axis rule: where it is, and which axes it stops."""
    nodes, places = model.nodes, dict[str, list[str]]()
    for name, op in model.table.unknown.items():
        places.setdefault(op, []).append(name)
    for op, names in places.items():
        stopped = [a.id for a in model.anatomy.axes.values() if a.frozen_node in names]
        if not stopped:
            continue
        source = nodes[names[0]].meta.get("source")
        more = f" and {len(stopped) - 3} more" if len(stopped) > 3 else ""
        yield Remark(
            "missed",
            "no-axis-rule",
            f"no axis rule for {op}, at %{names[0]}{f' ({source})' if source else ''}: "
            f"{', '.join(stopped[:3])}{more} cannot be cut",
            names[0],
            f"register a rule for {op} with esper.register_axis_rule",
            {"axes": len(stopped), "nodes": len(names)},
        )
