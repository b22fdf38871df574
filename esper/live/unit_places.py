"""Where the signals of units come from: weights and their gradients, which cost nothing more.

A unit's value reaches a layer only through the weights that consume it, so a mask m on the value
acts as a scale of those weights, and at m = 1

    dL/dm = sum over these weights of w * dL/dw

whatever lies before. This is exact where every consumer is a contraction with a weight that
nothing else reads. Where some consumer has none (attention scores, norms) it leaves that consumer
out; where no consumer has one, the sum runs over the weights that make the unit, which is right
for a unit that is linear in them. Both are then called estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esper.ir.terms import atoms_of, unit_index
from esper.ir.weights import MASK, consuming_dim

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

Place = tuple[str, int]  # parameter, dim


@dataclass(frozen=True)
class Source:
    """The weights that an axis's signals are taken from."""

    places: tuple[Place, ...]
    exact: bool


def source(model: Model, axis: Axis) -> Source:
    """Consuming weights where there are any, else the weights that make the units."""
    found: dict[Place, set[str]] = {}
    complete = True
    for use in model.table.uses_of.get(axis.atom, ()):
        place = consuming_dim(model, use, axis.atom)
        if place is None:
            complete = False
        else:
            found.setdefault(place, set()).add(use.node)
    if not found:
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        return Source(tuple(p for p in axis.members if p[0] in trained), exact=False)
    exact = complete and all(_only_by(model, place[0], users) for place, users in found.items())
    return Source(tuple(found), exact)


def _only_by(model: Model, tensor: str, users: set[str]) -> bool:
    """Whether a weight trains and only these nodes contract it, through a mask or not."""
    parameter = model.tensor(tensor)
    if parameter is None or not parameter.requires_grad:
        return False
    nodes = model.nodes
    for reader in model.readers().get(tensor, ()):
        for user in nodes[reader].users:
            direct = user.users if user.target is MASK else (user,)
            if any(node.name not in users for node in direct):
                return False
    return True


class UnitReader:
    """Reads one sample of all axes of a model in its present structure.

    Attributes:
        segments: axis -> its units.
        sources: axis -> where its signals come from.
        owner: number of the axis of each unit.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        table = model.table
        axes = {n: a for n, a in model.anatomy.axes.items() if a.atom in table.sizes}
        self.sources = {name: source(model, axis) for name, axis in axes.items()}
        self.sources = {name: s for name, s in self.sources.items() if s.places}
        self.segments = {name: axes[name].unit_ids for name in self.sources}
        self._places = tuple(dict.fromkeys(p for s in self.sources.values() for p in s.places))
        self._parameters = {name: model.get_parameter(name) for name, _ in self._places}
        starts: dict[Place, int] = {}
        at = 0
        for place in self._places:
            starts[place] = at
            at += self._parameters[place[0]].shape[place[1]]
        read, write, at = [], [], 0
        for name, origin in self.sources.items():
            for tensor, dim in origin.places:
                term = table.tensors[tensor][dim]
                assert axes[name].atom in atoms_of(term)
                owner = unit_index(term, axes[name].atom, table.sizes)
                owned = np.flatnonzero(owner >= 0)
                read.append(owned + starts[tensor, dim])
                write.append(owner[owned] + at)
            at += axes[name].size
        self.size = at
        sizes = torch.tensor([len(u) for u in self.segments.values()], dtype=torch.int64)
        self.owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
        empty = np.zeros(0, dtype=np.int64)
        self._read = torch.from_numpy(np.concatenate([*read, empty])).to(device)
        self._write = torch.from_numpy(np.concatenate([*write, empty])).to(device)
        self._device = device

    def sample(self, factors: Mapping[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """dL/dm and squared gradient norm of every unit, float32 or wider.

        Args:
            factors: id of a parameter -> what its gradient must be multiplied with (loss scaling);
                1 where nothing is said. Parameters without a gradient count as zero.
        """
        products: list[torch.Tensor] = []
        squares: list[torch.Tensor] = []
        made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, dim in self._places:
            weight = self._parameters[name].detach()
            gradient = self._parameters[name].grad
            if gradient is None:
                nothing = torch.zeros(weight.shape[dim], device=self._device)
                products.append(nothing)
                squares.append(nothing)
                continue
            if name not in made:
                made[name] = weight * gradient, gradient.square()
            factor = factors.get(id(self._parameters[name]), 1.0)
            rest = [d for d in range(weight.ndim) if d != dim]
            for column, values, scale in zip(
                (products, squares), made[name], (factor, factor * factor), strict=True
            ):
                along = values.sum(rest, dtype=_wide(values)) if rest else values.to(_wide(values))
                column.append((along * scale if factor != 1.0 else along).to(self._device))
        return self._spread(products), self._spread(squares)

    def _spread(self, columns: list[torch.Tensor]) -> torch.Tensor:
        if not columns:
            return torch.zeros(0, device=self._device)
        along = torch.cat(columns)
        return along.new_zeros(self.size).index_add_(
            0, self._write, along.index_select(0, self._read)
        )


def _wide(values: torch.Tensor) -> torch.dtype:
    return values.dtype if values.dtype == torch.float64 else torch.float32
