"""Units that masks leave without any weight: nothing goes out of them, or nothing comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from esper.ir.sparsity import masks
from esper.ir.terms import unit_index
from esper.ir.weights import consuming_dim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

Units = dict[str, tuple[int, ...]]  # axis -> birth numbers


def unheard(model: Model) -> Units:
    """Units all of whose outgoing weights are off: cutting them changes nothing."""
    found: Units = {}
    values = {name: mask.value for name, mask in masks(model).items()}
    for axis in model.anatomy.axes.values() if values else ():
        uses = model.table.uses_of.get(axis.atom, ())
        places = {consuming_dim(model, use, axis.atom) for use in uses}
        whole = {place for place in places if place is not None}
        if axis.cuttable and whole and len(whole) == len(places):
            _note(found, model, axis, values, whole)
    return found


def unfed(model: Model) -> Units:
    """Units all of whose incoming weights are off: what they give is constant."""
    found: Units = {}
    values = {name: mask.value for name, mask in masks(model).items()}
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
    for axis in model.anatomy.axes.values() if values else ():
        uses = model.table.uses_of.get(axis.atom, ())
        consuming = {consuming_dim(model, use, axis.atom) for use in uses}
        places = {p for p in axis.members if p[0] in matrices} - consuming
        if axis.cuttable and places:
            _note(found, model, axis, values, places)
    return found


def _note(
    found: Units,
    model: Model,
    axis: Axis,
    masks_of: Mapping[str, torch.Tensor],
    places: Iterable[tuple[str, int]],
) -> None:
    alive = torch.zeros(axis.size, dtype=torch.bool)
    for tensor, dim in places:
        mask = masks_of.get(tensor)
        if mask is None:
            return
        owner = torch.from_numpy(unit_index(model.table.tensors[tensor][dim], axis.atom,
                                            model.table.sizes))  # fmt: skip
        on = mask.movedim(dim, 0).flatten(1).any(1).cpu()
        alive[owner[on & (owner >= 0)]] = True
    units = tuple(unit for unit, on in zip(axis.unit_ids, alive.tolist(), strict=True) if not on)
    if units:
        found[axis.id] = units[: axis.size - axis.least]
