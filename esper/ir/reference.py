"""The meaning of a cut: the uncut model with removed units masked wherever they are consumed.

This is the oracle that every cut is held against. It shares nothing with the cutting code but
the terms: masks are inserted with `torch.where`, never by multiplication (NaN * 0 is NaN).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from esper.ir.axes import Use
from esper.ir.kept import MOMENTS, NORMS
from esper.ir.modes import get_path, set_path
from esper.ir.terms import kept_index, size_of

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

aten = torch.ops.aten


def masked_reference(model: Model, removed: Mapping[str, Sequence[int]]) -> Model:
    """A copy of `model` in which units contribute nothing.

    Args:
        model: the uncut model.
        removed: axis ID -> birth numbers of the units that are masked.

    Returns:
        A model with the shapes of `model`. For shared statistics (layer, RMS, group norm, means)
        it normalises over the units that stay. It can run and train, but is not meant to be saved.
    """
    reference = copy.deepcopy(model)
    nodes = reference.nodes
    for name, masks in masks_by_node(reference, removed).items():
        node = nodes[name]
        if norm_over_kept(node, masks) is not None:
            _normalise_kept(reference, node, masks)
            continue
        for use, mask in masks.items():
            _mask_operand(reference, node, use, mask)
        if next(iter(masks)).kind == "mean":
            _rescale(reference, node, masks)
    reference.graph.lint()
    reference.recompile()
    return reference


def masks_by_node(
    model: Model, removed: Mapping[str, Sequence[int]]
) -> dict[str, dict[Use, torch.Tensor]]:
    """Node -> use -> which positions stay, for every node that consumes one of the units."""
    table, axes = model.table, model.anatomy.axes
    keep: dict[int, IntArray] = {}
    for name, units in removed.items():
        axis = axes[name]
        keep[axis.atom] = np.setdiff1d(np.arange(axis.size), axis.positions(tuple(units)))
    found: dict[str, dict[Use, torch.Tensor]] = {}
    for use in table.uses:
        mask = _mask(use, keep, table.sizes)
        if not mask.all():
            found.setdefault(use.node, {})[use] = mask
    return found


def norm_over_kept(node: fx.Node, masks: Mapping[Use, torch.Tensor]) -> Callable[..., Any] | None:
    """The function of (mask, *arguments) that takes statistics over what stays.

    None for a node that takes none.
    """
    kind = next(iter(masks)).kind
    return MOMENTS[node.target] if kind == "moments" else NORMS.get(kind)


def combined(rank: int, masks: Mapping[Use, torch.Tensor]) -> torch.Tensor:
    """One mask that broadcasts over an operand of `rank` dims, where several dims are masked."""
    result = torch.ones([1] * rank, dtype=torch.bool)
    for use, mask in masks.items():
        shape = [1] * rank
        shape[use.dim] = -1
        result = result & mask.reshape(shape)
    return result


def share_kept(masks: Mapping[Use, torch.Tensor]) -> float:
    """All elements per element that stays, by which a mean over all of them is too small."""
    factor = 1.0
    for mask in masks.values():
        factor *= mask.numel() / int(mask.sum())
    return factor


def _mask(use: Use, keep: Mapping[int, Any], sizes: Mapping[int, int]) -> torch.Tensor:
    mask = torch.zeros(size_of(use.term, sizes), dtype=torch.bool)
    mask[torch.from_numpy(kept_index(use.term, keep, sizes))] = True
    return mask


def _buffer(model: Model, before: fx.Node, mask: torch.Tensor) -> fx.Node:
    number = 0
    while hasattr(model, f"mask_{number}"):
        number += 1
    device = next((t.device for _, t in model.all_tensors()), torch.device("cpu"))
    model.register_buffer(f"mask_{number}", mask.to(device), persistent=False)
    with model.graph.inserting_before(before):
        return model.graph.get_attr(f"mask_{number}")


def _like(node: fx.Node) -> dict[str, Any]:
    """Metadata of a stand-in: never the mode switches, which name the other node's arguments."""
    return {key: node.meta.get(key) for key in ("val", "module", "source")}


def _mask_operand(model: Model, node: fx.Node, use: Use, mask: torch.Tensor) -> None:
    operand: fx.Node = get_path(node, use.path)
    rank = operand.meta["val"].ndim
    read = _buffer(model, node, mask.reshape([-1] + [1] * (rank - use.dim - 1)))
    with model.graph.inserting_before(node):
        masked = model.graph.call_function(
            aten.where.ScalarOther, (read, operand, NEUTRAL[use.kind])
        )
    masked.meta = _like(operand)
    set_path(node, use.path, masked)


# What a masked unit counts as where statistics are not taken over the rest by other means. Not
# infinite: gradients of what is computed from masked units would be NaN, not zero.
NEUTRAL = {"zero": 0.0, "mean": 0.0, "one": 1.0, "lowest": -1e30, "highest": 1e30}


def _rescale(model: Model, node: fx.Node, masks: Mapping[Use, torch.Tensor]) -> None:
    with model.graph.inserting_after(node):
        scaled = model.graph.call_function(aten.mul.Tensor, (node, share_kept(masks)))
    scaled.meta = _like(node)
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _normalise_kept(model: Model, node: fx.Node, masks: Mapping[Use, torch.Tensor]) -> None:
    """Statistics over kept elements; several masked dims combine by broadcasting."""
    rank = node.args[0].meta["val"].ndim  # type: ignore[union-attr]
    read = _buffer(model, node, combined(rank, masks))
    norm = norm_over_kept(node, masks)
    assert norm is not None
    with model.graph.inserting_before(node):
        made = model.graph.call_function(norm, (read, *node.args), node.kwargs)
    made.meta = _like(node)
    node.replace_all_uses_with(made)
    model.graph.erase_node(node)
