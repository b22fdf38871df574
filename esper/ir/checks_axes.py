"""Checks of axes: sizes of tensors, values and literals follow the axes; unit numbers are sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from esper.ir import modes
from esper.ir.anatomy import NO_LEAF, leaves
from esper.ir.packed_axes import is_gone
from esper.ir.printer import print_node
from esper.ir.scope import Scope
from esper.ir.shapes import describe
from esper.ir.terms import Term, atoms_of

if TYPE_CHECKING:
    from esper.ir.axes import AxisTable
    from esper.ir.model import Model

T = TypeVar("T")


def tensor_sizes(model: Model, scope: Scope) -> Iterator[str]:
    """tensor-sizes: every parameter and buffer has the sizes that its axes have."""
    table = model.table
    names = list(table.tensors)
    if scope.local:
        also = scope.tensors & table.tensors.keys()
        names = list(dict.fromkeys([*_of(model, scope, table.tensors_of), *sorted(also)]))
    tensors = {n: model.tensor(n) for n in names} if scope.local else dict(model.all_tensors())
    for name in names:
        terms = table.tensors[name]
        tensor = tensors.get(name)
        if tensor is None:
            yield f"tensor-sizes: the axes know a tensor {name} that the model has not"
        elif wrong := _wrong_dim(table, tensor.shape, terms):
            dim, size = wrong
            line = _reader(model, name)
            yield f"tensor-sizes: {name} is {describe(tensor)}, dim {dim} should be {size}: {line}"


def value_sizes(model: Model, scope: Scope) -> Iterator[str]:
    """value-sizes: every recorded value has the sizes that its axes have."""
    table = model.table
    nodes = scope.graph_nodes(model)
    if scope.local:
        also = set(_of(model, scope, table.values_of)) - {node.name for node in nodes}
        nodes = (*nodes, *(node for node in model.graph.nodes if node.name in also))
    for node in nodes:
        for value, terms in _pairs(node.meta.get("val"), table.values.get(node.name)):
            if wrong := _wrong_dim(table, value.shape, terms):
                dim, size = wrong
                line = print_node(model, node)
                yield f"value-sizes: it is {describe(value)}, dim {dim} should be {size}: {line}"


def literals(model: Model, scope: Scope) -> Iterator[str]:
    """literals: integers in arguments that stand for sizes equal them."""
    table = model.table
    nodes = model.nodes
    found = table.literals
    if scope.local:
        here = {node.name for node in scope.nodes}
        found = _of(model, scope, table.literals_of)
        found += [literal for literal in table.literals if literal.node in here]
    for literal in found:
        node = nodes.get(literal.node)
        if node is None:
            yield f"literals: the axes know a node %{literal.node} that the graph has not"
            continue
        if any(_symbolic(table, term) for term in literal.terms):
            continue
        wanted = sum(table.size(term) for term in literal.terms)
        try:
            present = modes.get_path(node, literal.path)
        except (IndexError, KeyError, TypeError):
            present = None
        if type(present) is not int or present != wanted:
            where = "".join(f"[{step}]" for step in literal.path)
            line = print_node(model, node)
            yield f"literals: argument {where} is {present!r}, the axes ask for {wanted}: {line}"


def units(model: Model, scope: Scope) -> Iterator[str]:
    """units: unit numbers are unique, were given out, fit the size; no retired ID lives."""
    table = model.table
    identities = model.anatomy.recognised()
    living = identities.axes
    for name in sorted(scope.axes & living.keys()) if scope.axes is not None else living:
        identity = living[name]
        ids = identity.unit_ids
        if name in identities.retired:
            yield f"units: {name} is both alive and retired"
        if len(set(ids)) != len(ids):
            double = next(unit for unit in ids if ids.count(unit) > 1)
            yield f"units: {name} has unit {double} twice"
        if ids and not (min(ids) >= 0 and max(ids) < identity.next_unit):
            yield (
                f"units: {name} has unit {max(ids) if min(ids) >= 0 else min(ids)}, "
                f"and the next to be given out is {identity.next_unit}"
            )
        seen = (m for m in identity.members if m[2] != NO_LEAF and not is_gone(m[1]))
        atoms = {_atom(table, *member) for member in seen}
        if len(atoms) == 1 and None not in atoms:
            size = table.sizes[next(atom for atom in atoms if atom is not None)]
            if size != len(ids):
                tensor = min(identity.members)[0]
                line = _reader(model, tensor)
                yield f"units: {name} has {size} units and {len(ids)} unit numbers: {line}"


def _of(model: Model, scope: Scope, index: dict[int, list[T]]) -> list[T]:
    """Entries of an index by atom that belong to the axes of a local scope."""
    return list(dict.fromkeys(item for a in scope.atoms(model) for item in index.get(a, ())))


def _atom(table: AxisTable, tensor: str, dim: int, leaf: int) -> int | None:
    terms = table.tensors.get(tensor, ())
    found = leaves(terms[dim]) if dim < len(terms) else []
    return found[leaf] if leaf < len(found) else None


def _symbolic(table: AxisTable, term: Term) -> bool:
    return any(table.sizes[atom] == 0 for atom in atoms_of(term))


def _wrong_dim(table: AxisTable, shape: Any, terms: tuple[Term, ...]) -> tuple[int, int] | None:
    """First dim whose size differs from its term's, and the term's size."""
    if len(shape) != len(terms):
        return min(len(shape), len(terms)), 0
    for dim, (size, term) in enumerate(zip(shape, terms, strict=True)):
        if isinstance(size, int) and not _symbolic(table, term) and size != table.size(term):
            return dim, table.size(term)
    return None


def _pairs(value: Any, terms: Any) -> Iterator[tuple[torch.Tensor, tuple[Term, ...]]]:
    if isinstance(value, torch.Tensor) and isinstance(terms, tuple):
        yield value, terms
    elif isinstance(value, (list, tuple)) and isinstance(terms, tuple):
        for item, term in zip(value, terms, strict=False):
            yield from _pairs(item, term)


def _reader(model: Model, tensor: str) -> str:
    """The line of a node that reads a tensor."""
    names = model.canonical_names()
    for node in model.graph.find_nodes(op="get_attr"):
        if names.get(str(node.target)) == tensor or str(node.target) == tensor:
            return print_node(model, next(iter(node.users), node))
    return f"nothing reads {tensor}"
