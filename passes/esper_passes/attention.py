"""Queries, keys and values of one value, laid out by heads, as graphs hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.shapes import same_size
from esper_passes.lowerable import Lowerable, lowerable

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten.reshape.default)


@dataclass(frozen=True)
class Projection:
    """One of the three: a layer, split into heads, heads before the sequence.

    Attributes:
        layer: with a stored weight (heads * size, inputs).
        view: node of (batch, sequence, heads, size).
        turned: node of (batch, heads, sequence, size).
        heads, size: how its outputs are split.
    """

    layer: Lowerable
    view: fx.Node
    turned: fx.Node
    heads: int
    size: int


@dataclass(frozen=True)
class Projections:
    """Queries, then keys and values, of which either may come first."""

    q: Projection
    k: Projection
    v: Projection

    @property
    def parts(self) -> tuple[Projection, Projection, Projection]:
        """In the order in which a kernel computes them."""
        return self.q, self.k, self.v


def projections(model: Model, node: fx.Node) -> Projections | None:
    """The projections of which that of the queries is a node; None for anything else.

    Three layers read one value of three dims, with biases or without, and have the same head size.
    The last two have the same number of heads.
    """
    first = _projection(model, node)
    if first is None:
        return None
    readers = sorted(first.layer.x.users)
    found = [each for user in readers if (each := _projection(model, user)) is not None]
    if len(found) != 3 or found[0].layer.node is not node:
        return None
    _, k, v = found
    sizes = {each.size for each in found}
    biases = {each.layer.bias is None for each in found}
    if k.heads != v.heads or len(sizes) > 1 or len(biases) > 1:
        return None
    return Projections(first, k, v)


def _projection(model: Model, node: fx.Node) -> Projection | None:
    layer = lowerable(model, node)
    if not isinstance(layer, Lowerable) or layer.between is not None or layer.columns:
        return None
    view = _only(node)
    turned = None if view is None else _only(view)
    if view is None or turned is None or view.target not in _VIEWS or not _turns(turned):
        return None
    rows, split = node.meta["val"].shape, view.meta["val"].shape
    if len(rows) != 3 or len(split) != 4 or not all(map(same_size, rows[:2], split[:2])):
        return None
    heads, size = split[2:]
    static = isinstance(heads, int) and isinstance(size, int) and heads * size == layer.size[0]
    return Projection(layer, view, turned, int(heads), int(size)) if static else None


def _only(node: fx.Node) -> fx.Node | None:
    """The node that alone uses a value."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _turns(node: fx.Node) -> bool:
    """Whether a node swaps the two dims in the middle."""
    args: Any = node.args[1:]
    if node.target is aten.transpose.int:
        return sorted(dim % 4 for dim in args) == [1, 2]
    return node.target is aten.permute.default and [dim % 4 for dim in args[0]] == [0, 2, 1, 3]
