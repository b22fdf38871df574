"""Unification: refinements keep sizes and marks; impossible ones freeze instead of guessing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from esper.ir.unify import Dim, Mark, Solver, find, flat

SIZES = (2, 3, 4, 6, 8, 12, 24)


def atoms(dim: Dim) -> list[Dim]:
    """Leaves of a dim from left to right, size 1 left out."""
    dim = find(dim)
    if dim.form == "atom":
        return [] if dim.size == 1 else [dim]
    return [leaf for part in dim.parts for leaf in atoms(part)]


def owners(dim: Dim) -> list[frozenset[tuple[int, int]]]:
    """For every position the units (serial of the atom, number) that own it."""
    dim = find(dim)
    if dim.form == "atom":
        units = range(dim.size)
        return [frozenset() if dim.size == 1 else frozenset([(dim.serial, u)]) for u in units]
    if dim.form == "sum":
        return [owned for part in dim.parts for owned in owners(part)]
    result = [frozenset[tuple[int, int]]()]
    for part in dim.parts:
        result = [outer | inner for outer in result for inner in owners(part)]
    return result


def check_sizes(dim: Dim) -> int:
    """Recompute the size of a dim from its parts, checking every level."""
    dim = find(dim)
    if dim.form == "atom":
        assert isinstance(dim.size, int)
        return dim.size
    sizes = [check_sizes(part) for part in dim.parts]
    assert dim.size == (math.prod(sizes) if dim.form == "product" else sum(sizes))
    return int(dim.size)


@st.composite
def structures(draw: st.DrawFn, size: int, depth: int = 2) -> object:
    """A shape of `size`: an int, ("product", [...]) or ("sum", [...])."""
    forms = ["atom"]
    divisors = [d for d in range(2, size) if size % d == 0]
    if depth and divisors:
        forms.append("product")
    if depth and size > 1:
        forms.append("sum")
    form = draw(st.sampled_from(forms))
    if form == "atom":
        return size
    if form == "product":
        outer = draw(st.sampled_from(divisors))
        return (
            "product",
            [draw(structures(outer, depth - 1)), draw(structures(size // outer, depth - 1))],
        )
    first = draw(st.integers(1, size - 1))
    return (
        "sum",
        [draw(structures(first, depth - 1)), draw(structures(size - first, depth - 1))],
    )


def build(solver: Solver, structure: object) -> Dim:
    if isinstance(structure, int):
        return solver.fresh(structure)
    assert isinstance(structure, tuple)
    form, parts = structure
    dims = [build(solver, part) for part in parts]
    return solver.product(dims) if form == "product" else solver.total(dims)


@given(st.sampled_from(SIZES), st.data())
def test_refinements_keep_sizes_and_agree_or_freeze(size: int, data: st.DataObject) -> None:
    solver = Solver()
    shared = solver.fresh(size)
    dims = [build(solver, data.draw(structures(size))) for _ in range(3)]
    for dim in dims:
        solver.unify(shared, dim)
    layouts = []
    for dim in (shared, *dims):
        assert check_sizes(dim) == size
        if all(atom.frozen is None for atom in atoms(dim)):
            layouts.append(owners(dim))
    # Dims that stayed cuttable through and through hold the same units at the same places.
    assert all(layout == layouts[0] for layout in layouts)


@given(st.sampled_from(SIZES), st.data())
def test_marks_reach_every_atom_of_what_was_equated(size: int, data: st.DataObject) -> None:
    solver = Solver()
    shared = solver.fresh(size)
    solver.freeze(shared, "because")
    solver.couple(shared, "shared statistics")
    solver.role(shared, "heads")
    for _ in range(2):
        dim = build(solver, data.draw(structures(size)))
        solver.unify(shared, dim)
        for atom in atoms(dim):
            assert atom.frozen is not None
    for atom in atoms(shared):
        assert atom.frozen is not None
        assert atom.frozen.reason == "because"
        assert atom.coupled is not None
        assert "heads" in atom.roles


def sizes(dim: Dim) -> list[int]:
    return [atom.size for atom in atoms(dim)]


def test_atom_is_refined_into_a_product_everywhere() -> None:
    solver = Solver()
    one, two = solver.fresh(12), solver.fresh(12)
    solver.unify(one, two)
    solver.unify(two, solver.product([solver.fresh(3), solver.fresh(4)]))
    assert sizes(one) == sizes(two) == [3, 4]
    assert atoms(one) == atoms(two)


def test_products_refine_one_another() -> None:
    solver = Solver()
    a = solver.product([solver.fresh(6), solver.fresh(4)])
    b = solver.product([solver.fresh(2), solver.fresh(12)])
    solver.unify(a, b)
    assert sizes(a) == sizes(b) == [2, 3, 4]
    assert all(atom.frozen is None for atom in atoms(a))


def test_products_without_common_refinement_freeze() -> None:
    solver = Solver()
    a = solver.product([solver.fresh(2), solver.fresh(3)])
    b = solver.product([solver.fresh(3), solver.fresh(2)])
    solver.unify(a, b)
    assert all(atom.frozen is not None for atom in [*atoms(a), *atoms(b)])


def test_sums_split_at_every_place_where_either_ends() -> None:
    solver = Solver()
    a = solver.total([solver.fresh(5), solver.fresh(7)])
    b = solver.total([solver.fresh(8), solver.fresh(4)])
    solver.unify(a, b)
    assert sizes(a) == sizes(b) == [5, 3, 4]
    assert atoms(a) == atoms(b)


def test_split_inside_a_product_needs_whole_inner_blocks() -> None:
    solver = Solver()
    outer, inner = solver.fresh(6), solver.fresh(4)
    fused = solver.product([outer, inner])
    solver.unify(fused, solver.total([solver.fresh(8), solver.fresh(16)]))
    assert sizes(outer) == [2, 4]
    assert sizes(fused) == [2, 4, 4]  # (2 | 4) * 4
    assert all(atom.frozen is None for atom in atoms(fused))
    solver = Solver()
    fused = solver.product([solver.fresh(6), solver.fresh(4)])
    solver.unify(fused, solver.total([solver.fresh(7), solver.fresh(17)]))
    assert all(atom.frozen is not None for atom in atoms(fused))


def test_selector_of_equal_parts_is_frozen_and_parts_are_shared() -> None:
    solver = Solver()
    selector, inner = solver.fresh(3), solver.fresh(4)
    parts = [solver.fresh(4) for _ in range(3)]
    solver.unify(solver.product([selector, inner]), solver.total(parts))
    assert find(selector).frozen is not None
    assert all(find(part) is find(inner) for part in parts)
    assert find(inner).frozen is None


@pytest.mark.parametrize("form", ["product", "sum"])
def test_a_dimension_never_contains_itself(form: str) -> None:
    solver = Solver()
    atom = solver.fresh(4)
    other = (
        solver.product([atom, solver.fresh(3)])
        if form == "product"
        else solver.total([atom, solver.fresh(8)])
    )
    other.size = 4  # as after a wrong equation upstream
    solver.unify(atom, other)
    assert find(atom).form == "atom"
    assert find(atom).frozen is not None


def test_sizes_that_differ_freeze_both() -> None:
    solver = Solver()
    solver.current = Mark("", "add", "aten.add.Tensor")
    a, b = solver.fresh(3), solver.fresh(4)
    solver.unify(a, b)
    assert find(a) is not find(b)
    for dim in (a, b):
        assert dim.frozen == Mark("sizes 3 and 4 meet", "add", "aten.add.Tensor")


S = sympy.Symbol("s0", integer=True, positive=True)


def test_symbolic_sizes_compare_as_expressions() -> None:
    solver = Solver()
    a = solver.product([solver.fresh(S), solver.fresh(4)])
    b = solver.product([solver.fresh(S), solver.fresh(4)])
    solver.unify(a, b)
    left, right = flat(a, "product"), flat(b, "product")
    assert [find(x) for x in left] == [find(y) for y in right]
    assert find(left[1]).frozen is None


def test_units_merged_with_the_batch_come_apart_again() -> None:
    solver = Solver()
    batch, heads, merged = solver.fresh(S), solver.fresh(4), solver.fresh(4 * S)
    solver.unify(merged, solver.product([batch, heads]))
    apart = [solver.fresh(S), solver.fresh(2), solver.fresh(2)]
    solver.unify(solver.product(apart), merged)
    assert find(apart[0]) is find(batch)
    assert [find(part) for part in flat(heads, "product")] == [find(part) for part in apart[1:]]
    assert all(atom.frozen is None for atom in atoms(heads))


@pytest.mark.parametrize("other", [[S, 3, 8], [S + 1, 6], [3, S, 8]])
def test_symbolic_products_that_do_not_divide_freeze(other: list[Any]) -> None:
    solver = Solver()
    a = solver.product([solver.fresh(S), solver.fresh(4), solver.fresh(6)])
    b = solver.product([solver.fresh(size) for size in other])
    solver.unify(a, b)
    assert all(atom.frozen is not None for atom in [*atoms(a)[1:], *atoms(b)[1:]])


def test_a_reason_to_freeze_merged_units_reaches_them() -> None:
    solver = Solver()
    heads, merged = solver.fresh(4), solver.fresh(4 * S)
    solver.freeze(merged, "contracted")
    solver.unify(merged, solver.product([solver.fresh(S), heads]))
    mark = find(heads).frozen
    assert mark is not None
    assert mark.reason == "contracted"


def test_the_first_reason_and_the_oldest_atom_win() -> None:
    solver = Solver()
    a, b = solver.fresh(3), solver.fresh(3)
    solver.freeze(a, "first")
    solver.freeze(a, "second")
    solver.unify(b, a)
    assert find(a) is find(b)
    assert find(b).serial == 1
    mark = find(b).frozen
    assert mark is not None
    assert mark.reason == "first"


def test_neutral_parts_vanish() -> None:
    solver = Solver()
    a = solver.fresh(5)
    assert solver.product([solver.fresh(1), a]) is a
    assert solver.total([a, solver.fresh(0)]) is a
    assert solver.product([]).size == 1
