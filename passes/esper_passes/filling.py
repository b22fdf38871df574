"""What new places of a tensor hold, place by place, as operations on its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from esper.ir.terms import kept_index, unit_index
from esper.state import Grow, Patch
from esper_passes.growth_init import drawn, share

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.terms import IntArray, Term

How = Literal["drawn", "zero", "copy", "share", "mean", "solved"]


@dataclass(frozen=True)
class Layout:
    """Where positions go along one dim of one tensor.

    Attributes:
        places: new place of each old position.
        new: places that are new.
        sources: old position that each new one stands for, if units are copied.
        parents: new place of each of those positions.
    """

    places: IntArray
    new: IntArray
    sources: IntArray
    parents: IntArray

    @classmethod
    def of(cls, axis: Axis, term: Term, sources: IntArray, sizes: Mapping[int, int]) -> Layout:
        """The dim `term` once the axis has grown by copies of the units at `sources`."""
        gather = kept_index(
            term, {axis.atom: np.concatenate([np.arange(axis.size), sources])}, sizes
        )
        owners = unit_index(term, axis.atom, {**sizes, axis.atom: axis.size + len(sources)})
        is_new = owners >= axis.size
        new, places = np.flatnonzero(is_new), np.flatnonzero(~is_new)
        return cls(places, new, gather[new], places[gather[new]])


@dataclass(frozen=True)
class Filling:
    """How one dim of one tensor grows.

    Attributes:
        how: what new places hold: values drawn with the spread that is there, zero, copies,
            a share of a copy that its parent loses, the mean of the old places, or solved values.
        acting: the same for places through which units act on what follows.
        positions: old positions that act; None for all, where anything does.
        acts: whether places of this dim act at all.
        scale: factor of all old places (of those that act, if any do) and what is drawn or copied
            for them.
    """

    how: How = "drawn"
    acting: How = "drawn"
    positions: IntArray | None = None
    acts: bool = False
    scale: float = 1.0


def filled(
    value: torch.Tensor,
    dim: int,
    layout: Layout,
    filling: Filling,
    generator: torch.Generator,
    solved: torch.Tensor | None = None,
) -> list[Grow | Patch]:
    """Operations on one dim of a tensor; `solved` holds what new places take, in their order."""
    acting = np.full(len(layout.new), filling.acts)
    if filling.acts and filling.positions is not None:
        acting = np.isin(layout.sources, filling.positions)
    copies = value.index_select(dim, _at(layout.sources, value))
    where = torch.from_numpy(acting).to(value.device)
    where = where.reshape([-1 if d == dim else 1 for d in range(value.ndim)])
    fill = copies
    if not acting.all():
        fill = _values(value, copies, dim, filling.how, generator, solved)
    ops: list[Grow | Patch] = []
    patch: list[Patch] = []
    if acting.any() and filling.acting == "share":
        shares, patch = _shares(copies, dim, np.flatnonzero(acting), layout, generator)
        fill = torch.where(where, shares, fill)
    elif acting.any():
        acts = _values(value, copies, dim, filling.acting, generator, solved)
        fill = torch.where(where, acts * filling.scale if filling.scale != 1.0 else acts, fill)
    if filling.scale != 1.0:
        ops.append(_scaled(value, dim, filling))
    copied = {filling.how, filling.acting if filling.acts else filling.how} <= {"copy", "share"}
    sources = tuple(layout.sources.tolist()) if copied else None
    return [*ops, Grow(dim, tuple(layout.places.tolist()), fill, sources), *patch]


def _at(index: IntArray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(index).to(like.device)


def _shares(
    copies: torch.Tensor, dim: int, acting: IntArray, layout: Layout, generator: torch.Generator
) -> tuple[torch.Tensor, list[Patch]]:
    """Shares at the `acting` of the new places, and what is left for their parents.

    Of a parent that is copied several times, each copy takes a share of what those before it left;
    merged in reverse, they give it back bit for bit.
    """
    parents, first, inverse = np.unique(
        layout.parents[acting], return_index=True, return_inverse=True
    )
    rest = copies.index_select(dim, _at(acting[first], copies))
    shares = torch.zeros_like(copies)
    for turn in turns(inverse):
        whose = _at(inverse[turn], copies)
        left = rest.index_select(dim, whose)
        part = share(left, generator)
        shares.index_copy_(dim, _at(acting[turn], copies), part)
        rest.index_copy_(dim, whose, left - part)
    return shares, [Patch(dim, tuple(parents.tolist()), rest)]


def turns(owners: IntArray) -> list[IntArray]:
    """Positions in turns: the first of each owner, the second of each, and so on."""
    seen: dict[int, int] = {}
    found: list[list[int]] = []
    for position, owner in enumerate(owners.tolist()):
        turn = seen.get(owner, 0)
        seen[owner] = turn + 1
        if turn == len(found):
            found.append([])
        found[turn].append(position)
    return [np.array(positions, dtype=np.int64) for positions in found]


def _scaled(value: torch.Tensor, dim: int, filling: Filling) -> Patch:
    every = np.arange(value.shape[dim])
    at = every if filling.positions is None else filling.positions
    old = value.index_select(dim, _at(at, value))
    return Patch(dim, tuple(at.tolist()), old * filling.scale)


def _values(
    value: torch.Tensor,
    copies: torch.Tensor,
    dim: int,
    how: How,
    generator: torch.Generator,
    solved: torch.Tensor | None,
) -> torch.Tensor:
    if how == "solved":
        assert solved is not None
        return solved.to(copies)
    if how == "copy" or not value.is_floating_point():
        return copies
    if how == "zero":
        return torch.zeros_like(copies)
    if how == "mean":
        return value.mean(dim, keepdim=True).expand_as(copies).clone()
    return drawn(value, copies, dim, generator)
