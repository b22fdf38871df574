"""Which axes an `axes` option of a pass means."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

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
