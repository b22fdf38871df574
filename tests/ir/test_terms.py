"""Terms: sizes, positions that survive a cut, owners of positions, text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.ir.terms import (
    ONE,
    Atom,
    Product,
    Sum,
    Term,
    atoms_of,
    kept_index,
    product,
    show,
    size_of,
    total,
    unit_index,
)

Ints = npt.NDArray[np.int64]
A, B, C = Atom(0), Atom(1), Atom(2)
SIZES = {0: 2, 1: 3, 2: 4}


def terms(depth: int = 3) -> st.SearchStrategy[Term]:
    """Products of different atoms and sums of anything: no atom twice in one product."""

    def build(atoms: tuple[int, ...], depth: int) -> st.SearchStrategy[Term]:
        leaves = st.sampled_from([Atom(a) for a in atoms])
        if depth == 0:
            return leaves
        inner = build(atoms, depth - 1)
        choices: list[st.SearchStrategy[Term]] = [leaves]
        choices.append(st.lists(inner, min_size=2, max_size=3).map(total))
        if len(atoms) > 1:
            for cut in range(1, len(atoms)):
                left, right = build(atoms[:cut], depth - 1), build(atoms[cut:], depth - 1)
                choices.append(st.tuples(left, right).map(product))
        return st.one_of(choices)

    return build((0, 1, 2), depth)


def owners(term: Term, sizes: dict[int, int]) -> list[set[tuple[int, int]]]:
    """Brute force: for every position the units (atom, number) that own it."""
    if isinstance(term, Atom):
        return [{(term.id, unit)} for unit in range(sizes[term.id])]
    if isinstance(term, Sum):
        return [owned for part in term.parts for owned in owners(part, sizes)]
    result: list[set[tuple[int, int]]] = [set()]
    for factor in term.factors:
        result = [outer | inner for outer in result for inner in owners(factor, sizes)]
    return result


@given(terms())
def test_size_counts_positions(term: Term) -> None:
    assert size_of(term, SIZES) == len(owners(term, SIZES))


@given(terms(), st.data())
def test_kept_positions_are_those_whose_owners_all_stay(term: Term, data: st.DataObject) -> None:
    keep = {
        atom: np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
        for atom, size in SIZES.items()
        if data.draw(st.booleans())
    }
    expected = [
        position
        for position, owned in enumerate(owners(term, SIZES))
        if all(atom not in keep or unit in keep[atom] for atom, unit in owned)
    ]
    index = kept_index(term, keep, SIZES)
    assert index.tolist() == expected
    smaller = {atom: len(keep.get(atom, range(size))) for atom, size in SIZES.items()}
    assert size_of(term, smaller) == len(index)


@given(terms(), st.sampled_from([0, 1, 2]))
def test_owner_of_every_position(term: Term, atom: int) -> None:
    expected = [
        next((unit for owner, unit in owned if owner == atom), -1) for owned in owners(term, SIZES)
    ]
    assert unit_index(term, atom, SIZES).tolist() == expected


@given(terms(), st.data())
def test_two_cuts_compose_to_one(term: Term, data: st.DataObject) -> None:
    first = np.array(sorted(data.draw(st.sets(st.integers(0, 3), min_size=2))))
    second = np.array(sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1))))
    once = kept_index(term, {2: first}, SIZES)
    twice = once[kept_index(term, {2: second}, {**SIZES, 2: len(first)})]
    assert twice.tolist() == kept_index(term, {2: first[second]}, SIZES).tolist()


def test_one_is_the_empty_product() -> None:
    assert size_of(ONE, {}) == 1
    assert kept_index(ONE, {}, {}).tolist() == [0]
    assert unit_index(ONE, 0, SIZES).tolist() == [-1]
    assert list(atoms_of(ONE)) == []


def test_composites_are_flat_and_singles_unwrapped() -> None:
    assert product([A]) == A
    assert total([B]) == B
    assert product([A, product([B, C])]) == Product((A, B, C))
    assert total([total([A, B]), C]) == Sum((A, B, C))
    assert product([A, ONE]) == A
    assert product([total([A, B]), C]) == Product((Sum((A, B)), C))


def test_atoms_repeat_from_left_to_right() -> None:
    assert list(atoms_of(total([product([A, B]), A, C]))) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (A, "a"),
        (ONE, "1"),
        (product([A, B]), "a*b"),
        (total([A, B]), "a|b"),
        (product([total([A, B]), C]), "(a|b)*c"),
        (total([product([A, B]), C]), "a*b|c"),
    ],
)
def test_text(term: Term, text: str) -> None:
    assert show(term, {0: "a", 1: "b", 2: "c"}) == text


def test_fused_heads_of_query_key_value() -> None:
    heads, width = Atom(0), Atom(1)
    term = total([product([heads, width])] * 3)
    index = kept_index(term, {0: np.array([1])}, {0: 2, 1: 3})
    assert index.tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
