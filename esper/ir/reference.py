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
    found: Callable[..., Any] | None = (
        _MOMENTS[node.target] if kind == "moments" else _NORMS.get(kind)
    )
    return found


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


def layer_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = False,
) -> torch.Tensor:
    """Layer norm over the elements where `mask` holds."""
    dims = list(range(-len(shape), 0))
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    mean = torch.where(mask, x, 0.0).sum(dims, keepdim=True) / count
    centred = torch.where(mask, x - mean, 0.0)
    y = centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """RMS norm over the elements where `mask` holds."""
    dims = list(range(-len(shape), 0))
    kept = torch.where(mask, x, 0.0)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    y = kept * torch.rsqrt(kept.square().sum(dims, keepdim=True) / count + floor)
    return y if weight is None else y * weight


def group_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = False,
) -> torch.Tensor:
    """Group norm over the channels where `mask` holds."""
    grouped = x.reshape(x.shape[0], groups, -1)
    kept = mask.expand(x.shape).reshape(grouped.shape)
    count = kept.sum(-1, keepdim=True).clamp_min(1)  # whole groups may be masked
    mean = torch.where(kept, grouped, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(kept, grouped - mean, 0.0)
    scale = torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)
    y = (centred * scale).reshape(x.shape)
    channels = [1, -1] + [1] * (x.ndim - 2)
    y = y if weight is None else y * weight.reshape(channels)
    return y if bias is None else y + bias.reshape(channels)


def _moments(finish: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[..., Any]:
    def moments(
        mask: torch.Tensor,
        x: torch.Tensor,
        dim: Sequence[int] | None = None,
        *,
        correction: float | None = None,
        keepdim: bool = False,
    ) -> Any:
        """Variance and mean over the elements where `mask` holds, as in `torch.var_mean`."""
        dims = list(range(x.ndim)) if dim is None else list(dim)
        count = mask.expand(x.shape).sum(dims, keepdim=True)
        mean = torch.where(mask, x, 0.0).sum(dims, keepdim=True) / count
        squares = torch.where(mask, x - mean, 0.0).square().sum(dims, keepdim=True)
        variance = squares / (count - (1 if correction is None else correction))
        if not keepdim:
            variance, mean = variance.squeeze(dims), mean.squeeze(dims)
        return finish(variance, mean)

    return moments


_MOMENTS: dict[Any, Any] = {
    aten.var.correction: _moments(lambda variance, mean: variance),
    aten.std.correction: _moments(lambda variance, mean: variance.sqrt()),
    aten.var_mean.correction: _moments(lambda variance, mean: (variance, mean)),
    aten.std_mean.correction: _moments(lambda variance, mean: (variance.sqrt(), mean)),
}
_NORMS: dict[str, Any] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
}
