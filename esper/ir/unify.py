"""Unification of dimensions: the solver under the axis analysis.

A `Dim` is a node of a union-find forest that may be bound to a product or a sum of other dims,
as a type variable is bound in type inference. Equating two dims either links them, refines one
into the structure of the other, or, where no common structure exists, freezes both: a wrong
guess would cut wrong weights, so the solver never makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Size = Any  # int, or a sympy expression for symbolic sizes


@dataclass(frozen=True, slots=True)
class Mark:
    """Why an atom may not be cut (or only with loss): a reason and the node that caused it."""

    reason: str
    node: str
    op: str = ""


class Dim:
    """One dimension. Use `find` before reading anything but `parent`."""

    __slots__ = (
        "born",
        "coupled",
        "form",
        "frozen",
        "least",
        "parent",
        "parts",
        "roles",
        "serial",
        "size",
    )

    def __init__(self, size: Size, serial: int) -> None:
        self.parent: Dim | None = None
        self.size = size
        self.form: Literal["atom", "product", "sum"] = "atom"
        self.parts: list[Dim] = []
        self.frozen: Mark | None = None
        self.coupled: Mark | None = None
        self.roles: set[str] = set()
        self.least = 1  # units that must stay
        self.serial = serial
        self.born = Mark("", "")  # the node being analysed when this dim was made


def find(dim: Dim) -> Dim:
    """Representative of a dim, with path compression."""
    root = dim
    while root.parent is not None:
        root = root.parent
    while dim.parent is not None:
        dim.parent, dim = root, dim.parent
    return root


def flat(dim: Dim, form: Literal["product", "sum"]) -> list[Dim]:
    """Leaves of nested products (or sums): binding nests what construction kept flat."""
    dim = find(dim)
    if dim.form != form:
        return [dim]
    return [leaf for part in dim.parts for leaf in flat(part, form)]


class Solver:
    """Creates, equates, refines and freezes dims."""

    def __init__(self) -> None:
        self._serial = 0
        self.current = Mark("", "")  # the node being analysed, for freezes caused by unification

    # -- construction ------------------------------------------------------------------------

    def fresh(self, size: Size) -> Dim:
        """A new atom. One of symbolic size is frozen once it is known to have no structure."""
        self._serial += 1
        dim = Dim(size, self._serial)
        dim.born = self.current
        return dim

    def product(self, factors: Sequence[Dim]) -> Dim:
        """Row-major product; factors of size 1 are dropped, a single factor is itself."""
        kept = [leaf for factor in factors for leaf in flat(factor, "product")]
        kept = [factor for factor in kept if not _is_one(factor)]
        if len(kept) == 1:
            return kept[0]
        size: Size = 1
        for factor in kept:
            size = size * factor.size
        return self._composite("product", kept, size)

    def total(self, parts: Sequence[Dim]) -> Dim:
        """Sum of parts laid end to end; nested sums are flattened."""
        kept = [leaf for part in parts for leaf in flat(part, "sum")]
        kept = [part for part in kept if part.size != 0]
        if len(kept) == 1:
            return kept[0]
        return self._composite("sum", kept, sum(part.size for part in kept))

    def _composite(self, form: Literal["product", "sum"], parts: list[Dim], size: Size) -> Dim:
        dim = self.fresh(size)
        dim.form, dim.parts = form, parts
        return dim

    # -- marks -------------------------------------------------------------------------------

    def freeze(self, dim: Dim, reason: str) -> None:
        """Forbid cutting any atom of `dim`; the first reason is kept."""
        self._mark(dim, "frozen", Mark(reason, self.current.node, self.current.op))

    def couple(self, dim: Dim, reason: str) -> None:
        """Mark atoms whose removal changes statistics of the units that stay (lossy cuts)."""
        self._mark(dim, "coupled", Mark(reason, self.current.node, self.current.op))

    def _mark(self, dim: Dim, field: str, mark: Mark) -> None:
        dim = find(dim)
        if dim.form == "atom":
            if getattr(dim, field) is None:
                setattr(dim, field, mark)
            return
        for part in dim.parts:
            self._mark(part, field, mark)

    def at_least(self, dim: Dim, count: int) -> None:
        """Demand that `count` units stay; of units with structure none may go then."""
        dim = find(dim)
        if dim.form == "atom":
            dim.least = max(dim.least, count)
        elif count > 1:
            self.freeze(dim, f"{count} of its units are selected")

    def role(self, dim: Dim, role: str) -> None:
        """Note what a dim is used as; roles only choose names, never what may be cut."""
        dim = find(dim)
        if dim.form == "atom":
            dim.roles.add(role)
            return
        for part in dim.parts:
            self.role(part, role)

    # -- unification -------------------------------------------------------------------------

    def unify(self, a: Dim, b: Dim) -> None:
        """Equate two dims of equal size."""
        a, b = find(a), find(b)
        if a is b:
            return
        if a.size != b.size:
            self._clash(a, b, f"sizes {a.size} and {b.size} meet")
        elif a.form == "atom":
            self._bind(a, b)
        elif b.form == "atom":
            self._bind(b, a)
        elif a.form == b.form == "product":
            self._products(a, b)
        elif a.form == b.form == "sum":
            self._sums(a, b)
        elif a.form == "product":
            self._product_sum(a, b)
        else:
            self._product_sum(b, a)

    def _clash(self, a: Dim, b: Dim, reason: str) -> None:
        self.freeze(a, reason)
        self.freeze(b, reason)

    def _bind(self, atom: Dim, other: Dim) -> None:
        if other.form != "atom" and _contains(other, atom):
            self._clash(atom, other, "a dimension would contain itself")
            return
        if other.form == "atom" and other.serial > atom.serial:
            atom, other = other, atom  # the older atom represents, so results are deterministic
        atom.parent = other
        if atom.frozen is not None:
            self._mark(other, "frozen", atom.frozen)
        if atom.coupled is not None:
            self._mark(other, "coupled", atom.coupled)
        self.at_least(other, atom.least)
        for role in atom.roles:
            self.role(other, role)

    def _products(self, a: Dim, b: Dim) -> None:
        left, right = flat(a, "product"), flat(b, "product")
        # Refine from the outside in: equal heads unify, a larger head is split by the smaller.
        while left and right:
            x, y = find(left[0]), find(right[0])
            if x.size == y.size:
                self.unify(x, y)
                left.pop(0), right.pop(0)
                continue
            split = self._split_product(x, y.size)
            if split is not None:
                left[0:1] = split
                continue
            split = self._split_product(y, x.size)
            if split is None:
                self._clash(a, b, "factors do not divide one another")
                return
            right[0:1] = split
        if left or right:
            self._clash(a, b, "factors do not match")

    def _split_product(self, dim: Dim, outer: Size) -> list[Dim] | None:
        """Refine `dim` into outer x rest; None where its structure does not allow it."""
        dim = find(dim)
        rest_size = quotient(dim.size, outer)
        if rest_size is None:
            return None
        first, rest = self.fresh(outer), self.fresh(rest_size)
        self.unify(dim, self.product([first, rest]))
        return [first, rest]

    def _sums(self, a: Dim, b: Dim) -> None:
        left, right = flat(a, "sum"), flat(b, "sum")
        while left and right:
            x, y = find(left[0]), find(right[0])
            if x.size == y.size:
                self.unify(x, y)
                left.pop(0), right.pop(0)
                continue
            if not (isinstance(x.size, int) and isinstance(y.size, int)):
                self._clash(a, b, "symbolic sums differ")
                return
            big, small, side = (x, y, left) if x.size > y.size else (y, x, right)
            split = self.split_sum(big, small.size)
            if split is None:
                self._clash(a, b, "parts end at different places")
                return
            side[0:1] = split

    def split_sum(self, dim: Dim, first: int) -> list[Dim] | None:
        """Refine `dim` into two parts, the first of size `first`; None where impossible."""
        dim = find(dim)
        if first in (0, dim.size):
            return [dim]
        if dim.form == "atom":
            head, tail = self.fresh(first), self.fresh(dim.size - first)
            self._bind(dim, self.total([head, tail]))
            return [head, tail]
        if dim.form == "sum":
            head_parts: list[Dim] = []
            parts = flat(dim, "sum")
            while parts and first >= parts[0].size:
                first -= parts[0].size
                head_parts.append(parts.pop(0))
            if first:
                split = self.split_sum(parts[0], first)
                if split is None:
                    return None
                head_parts.append(split[0])
                parts[0] = split[1]
            return [self.total(head_parts), self.total(parts)]
        outer, *inner = flat(dim, "product")
        width = 1
        for part in inner:
            width *= part.size
        if first % width:
            return None
        split = self.split_sum(outer, first // width)
        if split is None:
            return None
        return [self.product([part, *inner]) for part in split]

    def _product_sum(self, prod: Dim, total: Dim) -> None:
        """Equate outer x inner with a | b | ...: each part becomes part_outer x inner."""
        factors, parts = flat(prod, "product"), flat(total, "sum")
        for cut in range(1, len(factors)):
            width = 1
            for factor in factors[cut:]:
                width *= factor.size
            if not all(isinstance(p.size, int) and p.size % width == 0 for p in parts):
                continue
            inner = self.product(factors[cut:])
            outers = [self.fresh(part.size // width) for part in parts]
            if all(_is_one(outer) for outer in outers):
                # Equal parts selected by an index: the selector itself has no units to cut.
                self.freeze(self.product(factors[:cut]), "selects equal parts")
            else:
                self.unify(self.product(factors[:cut]), self.total(outers))
            for part, outer in zip(parts, outers, strict=True):
                self.unify(part, self.product([outer, inner]))
            return
        self._clash(prod, total, "a product and a sum have no common refinement")


def quotient(size: Size, divisor: Size) -> Size | None:
    """`size / divisor` where that is a whole number for all values of the symbols, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        return None if size % divisor else size // divisor
    ratio = size / divisor  # symbols stand for positive whole numbers
    if not ratio.is_integer:
        return None
    return int(ratio) if ratio.is_number else ratio


def _is_one(dim: Dim) -> bool:
    return bool(dim.size == 1)


def _contains(composite: Dim, atom: Dim) -> bool:
    composite = find(composite)
    if composite is atom:
        return True
    return any(_contains(part, atom) for part in composite.parts)
