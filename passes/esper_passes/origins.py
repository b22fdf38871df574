"""Going back from a value to the tensors that make it zero where its units are new.

Values are followed backwards as masks: which elements of each value reach the one asked for
through its new units. A layer's output is zero where rows of its weight and entries of its bias
are; sums are where both terms are, products where one factor is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from esper.ir.ancestors import ancestors
from esper.ir.rules.shape import MOVES
from esper.ir.terms import atoms_of, unit_index

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

aten = torch.ops.aten
# Layers: the position of the weight, its dim of outputs, and the position of the bias.
_LAYERS: dict[Any, tuple[int, int, int | None]] = {
    aten.linear.default: (1, 0, 2),
    aten.addmm.default: (2, -1, 0),
    aten.matmul.default: (1, -1, None),
    aten.mm.default: (1, -1, None),
    **{getattr(aten, f"conv{n}d").default: (1, 0, 2) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 0, 2) for n in (1, 2, 3)},
    aten.embedding.default: (0, 1, None),
}
_PRODUCTS = (aten.mul.Tensor,)
_TERMS = (aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.stack.default)
_LINEAR = MOVES | {
    operator.getitem,
    aten.index.Tensor,
    aten.neg.default,
    aten.dropout.default,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.mul.Scalar,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.chunk.default,
    aten.unbind.int,
}
_ZERO = {  # of one operand, zero at zero
    getattr(aten, name).default
    for name in "relu gelu silu tanh abs leaky_relu elu mish hardswish erf sin".split()
}


Places = dict[tuple[str, int], "IntArray | None"]


@dataclass
class Origin:
    """Tensors that make a value zero.

    Attributes:
        places: positions by (tensor, dim), None for all with the axis.
        linear: whether the value is linear in them.
        factors: what it was multiplied by on the way.
    """

    places: Places = field(default_factory=dict)
    linear: bool = True
    factors: list[fx.Node] = field(default_factory=list)


class Origins:
    """Answers for one axis of one model."""

    def __init__(self, model: Model, atom: int) -> None:
        self._model = model
        self._atom = atom
        self._order = {node: i for i, node in enumerate(model.graph.nodes)}
        self._known: dict[fx.Node, bool] = {}

    @cached_property
    def _names(self) -> dict[str, str]:
        return self._model.canonical_names()

    def of(self, value: Any) -> Origin | None:
        """What makes `value` zero at all its units of the axis; None where nothing does."""
        if not isinstance(value, fx.Node) or not self._reaches(value):
            return None
        found = Origin()
        masks = {value: torch.ones(_sizes(value), dtype=torch.bool)}
        while masks:
            node = max(masks, key=self._order.__getitem__)
            self._back(node, masks.pop(node), masks, found)
        found.linear &= not any(self.depends(factor, found) for factor in found.factors)
        return found

    def depends(self, value: Any, origin: Origin) -> bool:
        """Whether `value` may change with what `origin` names, so that a product is not linear."""
        if not isinstance(value, fx.Node) or not self._holds(value):
            return False
        behind = ancestors([value])
        read = {self._names.get(str(n.target)) for n in behind if n.op == "get_attr"}
        if read.isdisjoint(name for name, _ in origin.places):
            return False
        # Parts of one fused layer are apart where both ways back are plain.
        own = self.of(value)
        return own is None or bool(own.factors) or overlap(own.places, origin.places)

    # -- which way -------------------------------------------------------------------------------

    def _holds(self, value: Any) -> bool:
        if not isinstance(value, fx.Node):
            return False
        if value.op == "get_attr":
            terms = self._model.table.tensors.get(self._names.get(str(value.target), ""), ())
        else:
            terms = self._model.table.values.get(value.name) or ()
        return any(self._atom in atoms_of(term) for term in _flat(terms))

    def _way(self, node: fx.Node) -> list[fx.Node] | None:
        """Operands that must be zero for the node to be; [] ends at its tensors; None: no way."""
        if node.op == "get_attr":
            return []
        layer = self._layer(node)
        if layer is not None:
            return []
        operands = node.all_input_nodes
        held = [operand for operand in operands if self._holds(operand)]
        if node.target in _LINEAR or node.target in _ZERO:
            return held if held == operands[:1] else None
        if node.target in _TERMS:
            return held if held and len(held) == len(operands) else None
        if node.target in _PRODUCTS:
            return next(([x] for x in held if self._reaches(x)), None)
        return None

    def _reaches(self, node: fx.Node) -> bool:
        if node not in self._known:
            self._known[node] = False
            way = self._way(node)
            self._known[node] = way is not None and all(map(self._reaches, way))
        return self._known[node]

    def _layer(self, node: fx.Node) -> list[tuple[str, int]] | None:
        """(tensor, dim of outputs) of the weight and the bias of a layer that makes the units."""
        known = _LAYERS.get(node.target)
        if known is None:
            return None
        at, dim, bias = known
        reads = [(node.args[at], dim)]
        if bias is not None and bias < len(node.args) and node.args[bias] is not None:
            reads.append((node.args[bias], -1))
        places = []
        for read, along in reads:
            if not isinstance(read, fx.Node) or read.op != "get_attr" or not self._holds(read):
                return None
            name = self._names[str(read.target)]
            places.append((name, along % len(self._model.table.tensors[name])))
        return places

    # -- going back ------------------------------------------------------------------------------

    def _back(
        self, node: fx.Node, mask: Tensor, masks: dict[fx.Node, Tensor], found: Origin
    ) -> None:
        places = self._layer(node)
        if node.op == "get_attr":
            name = self._names[str(node.target)]
            terms = self._model.table.tensors[name]
            places = [(name, d) for d, t in enumerate(terms) if self._atom in atoms_of(t)]
        if places is not None:
            for place in places:
                self._end(node, place, mask, found)
            return
        way = self._way(node)
        assert way is not None
        found.linear &= node.target not in _ZERO
        if node.target in _PRODUCTS:
            factors = [n for n in node.args[:2] if isinstance(n, fx.Node)]
            factors.remove(way[0])
            found.factors += factors
        for operand in way:
            moved = _moved(node, operand, mask)
            masks[operand] = masks[operand] | moved if operand in masks else moved

    def _end(self, node: fx.Node, place: tuple[str, int], mask: Tensor, found: Origin) -> None:
        name, dim = place
        table = self._model.table
        owner = unit_index(table.tensors[name][dim], self._atom, table.sizes)
        positions: IntArray | None = None
        along = _along(node, table.values[node.name], self._atom, len(owner))
        if along is not None:
            kept = mask.movedim(along, 0).flatten(1).any(1).numpy()
            positions = np.flatnonzero(kept & (owner >= 0))
        old = found.places.get(place, positions)
        both = old is not None and positions is not None
        found.places[place] = np.union1d(old, positions) if both else None  # type: ignore[arg-type]


def overlap(a: Places, b: Places) -> bool:
    """Whether some position of some tensor is in both."""
    for place in a.keys() & b.keys():
        one, other = a[place], b[place]
        if one is None or other is None or len(np.intersect1d(one, other)):
            return True
    return False


def _along(node: fx.Node, terms: Any, atom: int, size: int) -> int | None:
    dims = [d for d, term in enumerate(terms) if atom in atoms_of(term)]
    fits = len(dims) == 1 and _sizes(node)[dims[0]] == size
    return dims[0] if fits else None


def _sizes(node: fx.Node) -> list[int]:
    """Sizes of a value; where they are symbolic, those that it was traced with."""
    return [_number(size) for size in node.meta["val"].shape]


def _number(size: Any) -> int:
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1


def _flat(terms: Any) -> list[Any]:
    if isinstance(terms, tuple):
        return [leaf for item in terms for leaf in _flat(item)]
    return [] if terms is None else [terms]


def _moved(node: fx.Node, operand: fx.Node, mask: Tensor) -> Tensor:
    """The mask of an operand; all of it where an op moves values in a way that is not followed."""
    if node.target is operator.getitem:
        return _part(node, operand, mask)
    before = operand.meta["val"]
    if isinstance(before, (list, tuple)) or isinstance(node.meta["val"], (list, tuple)):
        return mask  # a split: `_part` has laid the mask out for its operand already
    whole = torch.ones(_sizes(operand), dtype=torch.bool)
    if node.target in _TERMS and node.target not in (aten.add.Tensor, aten.sub.Tensor):
        return whole
    if mask.all():
        return whole
    if node.target not in MOVES:
        return mask if mask.shape == whole.shape else whole
    # The position of each element, moved as the op moves it, says where it came from.
    numbers = torch.arange(whole.numel()).reshape(whole.shape)
    args = fx.map_arg(node.args[1:], lambda n: _number(n.meta["val"]))
    try:
        came = node.target(numbers, *args, **node.kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return whole
    if came.shape != mask.shape:
        return whole
    result = torch.zeros(whole.numel(), dtype=torch.bool)
    result[came[mask]] = True
    return result.reshape(whole.shape)


def _part(node: fx.Node, operand: fx.Node, mask: Tensor) -> Tensor:
    """The mask of what was split, from that of one of the parts."""
    index: Any = node.args[1]
    source: Any = operand.args[0]
    dim = int(operand.args[2]) if len(operand.args) > 2 else int(operand.kwargs.get("dim", 0))  # type: ignore[arg-type]
    whole = torch.zeros(_sizes(source), dtype=torch.bool)
    if operand.target is aten.unbind.int:
        dim = int(operand.args[1]) if len(operand.args) > 1 else int(operand.kwargs.get("dim", 0))  # type: ignore[arg-type]
        whole.select(dim, index).copy_(mask)
        return whole
    before = sum(int(part.shape[dim]) for part in operand.meta["val"][:index])
    whole.narrow(dim, before, mask.shape[dim]).copy_(mask)
    return whole
