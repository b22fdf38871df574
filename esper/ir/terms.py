"""The axis algebra: every dimension of every tensor is a term over atoms.

A term is an atom (a set of interchangeable units), a product of terms (outer first, as in a
row-major view) or a sum of terms (laid end to end, as in a concatenation). After analysis terms
are immutable values; only the number of units of an atom changes when units are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Atom:
    """A set of units, by number; its size is kept in the axis table."""

    id: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of terms, outer first. `Product(())` is the single unit of size 1."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Terms laid end to end along one dimension."""

    parts: tuple[Term, ...]


Term = Atom | Product | Sum
ONE = Product(())


def atoms_of(term: Term) -> Iterator[int]:
    """The atoms of a term from left to right, with repetition."""
    if isinstance(term, Atom):
        yield term.id
    else:
        for child in term.factors if isinstance(term, Product) else term.parts:
            yield from atoms_of(child)


def size_of(term: Term, sizes: Mapping[int, int]) -> int:
    """Number of elements along a dimension described by `term`."""
    if isinstance(term, Atom):
        return sizes[term.id]
    if isinstance(term, Product):
        size = 1
        for factor in term.factors:
            size *= size_of(factor, sizes)
        return size
    return sum(size_of(part, sizes) for part in term.parts)


def kept_index(term: Term, keep: Mapping[int, IntArray], sizes: Mapping[int, int]) -> IntArray:
    """Positions along the dimension that survive when each atom of `keep` keeps those positions.

    Args:
        term: the dimension.
        keep: atom -> sorted positions to keep; atoms not named keep everything.
        sizes: atom -> size before the cut.
    """
    if isinstance(term, Atom):
        chosen = keep.get(term.id)
        return np.arange(sizes[term.id], dtype=np.int64) if chosen is None else chosen
    if isinstance(term, Product):
        index = np.zeros(1, dtype=np.int64)
        for factor in term.factors:
            inner = kept_index(factor, keep, sizes)
            index = (index[:, None] * size_of(factor, sizes) + inner[None, :]).reshape(-1)
        return index
    offset = 0
    pieces = []
    for part in term.parts:
        pieces.append(kept_index(part, keep, sizes) + offset)
        offset += size_of(part, sizes)
    return np.concatenate(pieces)


def unit_index(term: Term, atom: int, sizes: Mapping[int, int]) -> IntArray:
    """For each position along the dimension, the unit of `atom` that owns it, or -1.

    A position is owned by at most one unit of an atom: an atom that occurs twice within one
    product would make a diagonal, which unification never builds (it freezes instead).
    """
    if isinstance(term, Atom):
        size = sizes[term.id]
        return np.arange(size, dtype=np.int64) if term.id == atom else np.full(size, -1)
    if isinstance(term, Product):
        index = np.full(1, -1, dtype=np.int64)
        for factor in term.factors:
            inner = unit_index(factor, atom, sizes)
            index = np.maximum(index[:, None], inner[None, :]).reshape(-1)
        return index
    return np.concatenate([unit_index(part, atom, sizes) for part in term.parts])


def show(term: Term, names: Mapping[int, str]) -> str:
    """Deterministic text, `12*64`-like: products with `*`, sums with `|`."""
    if isinstance(term, Atom):
        return names[term.id]
    if isinstance(term, Product):
        if not term.factors:
            return "1"
        inner = (
            f"({show(f, names)})" if isinstance(f, Sum) else show(f, names) for f in term.factors
        )
        return "*".join(inner)
    return "|".join(show(part, names) for part in term.parts)


def product(factors: Sequence[Term]) -> Term:
    """Product with nested products flattened and single factors unwrapped."""
    flat: list[Term] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def total(parts: Sequence[Term]) -> Term:
    """Sum with nested sums flattened and single parts unwrapped."""
    flat: list[Term] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Sum) else (part,))
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))
