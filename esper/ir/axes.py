"""Axis analysis: walk the graph once, let each op's rule equate dimensions, resolve to terms.

The result, an `AxisTable`, is immutable except for atom sizes, refers to nodes and parameters by
name, and says for every cut what must change: tensor dimensions (`tensors`), literal sizes in the
graph (`literals`), and where a removed unit would have been consumed (`uses`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from esper.ir.collection import no_collection
from esper.ir.terms import ONE, Atom, Product, Sum, Term, atoms_of, product, size_of, total
from esper.ir.unify import Dim, Mark, Solver, find

Dims = list[Dim]
Path = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """An integer in a node's arguments that equals the total size of some terms."""

    node: str
    path: Path  # argument position(s): ints index args, a leading str names a kwarg
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """A place where units are consumed: contracted, reduced or normalised.

    `kind` says what removing a unit means there: `zero` (it contributes nothing), `mean`
    (the mean is over the units that stay), `layer_norm`, `rms_norm`, `group_norm`, `moments`
    (statistics over the units that stay), `lowest`, `highest`, `one` (it counts as less
    than anything, more than anything, or one: neutral for maxima, minima and products).
    """

    node: str
    path: Path  # which operand
    dim: int
    term: Term
    kind: str = "zero"


@dataclass(frozen=True, slots=True)
class AtomInfo:
    """What is known of one atom; its size is in `AxisTable.sizes`."""

    frozen: Mark | None
    coupled: Mark | None
    roles: frozenset[str]
    least: int = 1  # units that must stay


@dataclass
class AxisTable:
    """Resolved analysis of one graph. Only `sizes` ever changes, when units are cut."""

    atoms: dict[int, AtomInfo] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    tensors: dict[str, tuple[Term, ...]] = field(default_factory=dict)  # parameters and buffers
    values: dict[str, Any] = field(default_factory=dict)  # node -> terms (or tuple of terms)
    literals: list[Literal] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)  # node -> op without a rule
    literals_of: dict[int, list[Literal]] = field(default_factory=dict)
    tensors_of: dict[int, list[str]] = field(default_factory=dict)
    uses_of: dict[int, list[Use]] = field(default_factory=dict)
    values_of: dict[int, list[str]] = field(default_factory=dict)

    def copy(self) -> AxisTable:
        """Independent sizes over shared immutable terms."""
        return replace(self, sizes=dict(self.sizes))

    def size(self, term: Term) -> int:
        """Elements along a dimension."""
        return size_of(term, self.sizes)


class Rules:
    """What a rule sees: the node, its operands' dims, and the verbs of the algebra."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self.dims: dict[fx.Node, Any] = {}
        self.literal_dims: list[tuple[str, Path, Dims]] = []
        self.use_dims: list[tuple[str, Path, int, Dim, str]] = []
        self.unknown: dict[str, str] = {}
        self.positions: dict[tuple[fx.Node, int | None], Dim] = {}
        self.followed: set[fx.Node] = set()  # operands whose positions this node's rule keeps right
        self.node: fx.Node

    # -- reading -----------------------------------------------------------------------------

    def of(self, value: Any) -> Dims:
        """Dims of a tensor operand."""
        dims: Dims = self.dims[value]
        return dims

    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        """Positional or keyword argument of the current node."""
        if index < len(self.node.args):
            return self.node.args[index]
        return self.node.kwargs.get(name, default)

    def shape(self, node: fx.Node | None = None) -> list[Any]:
        """Sizes of a node's tensor value: ints, or sympy expressions where symbolic."""
        return shape_of((node or self.node).meta["val"])

    def shape_of(self, value: Any) -> list[Any]:
        """Sizes of one value of a node that has several."""
        return shape_of(value)

    def is_one(self, dim: Dim) -> bool:
        """Whether a dim has one element, as those that broadcast."""
        return bool(find(dim).size == 1)

    def pointed(self, operand: Any) -> Dim | None:
        """The dim along which an operand's integers are positions, or None.

        Asking is a promise: the rule unifies that dim with whatever the integers address.
        """
        if not isinstance(operand, fx.Node):
            return None
        self.followed.add(operand)
        return self.positions.get((operand, None))

    # -- writing -----------------------------------------------------------------------------

    def fresh(self, size: Any, frozen: str | None = None) -> Dim:
        """A new dim; with `frozen`, one that may not be cut for that reason."""
        dim = self._solver.fresh(size)
        if frozen is not None:
            self._solver.freeze(dim, frozen)
        return dim

    def unify(self, a: Dim, b: Dim) -> None:
        """Equate two dims."""
        self._solver.unify(a, b)

    def product(self, factors: Sequence[Dim]) -> Dim:
        """Row-major product, outer first."""
        return self._solver.product(factors)

    def total(self, parts: Sequence[Dim]) -> Dim:
        """Parts laid end to end."""
        return self._solver.total(parts)

    def split(self, dim: Dim, sizes: Sequence[int]) -> Dims:
        """Refine `dim` into parts of the given sizes."""
        parts = [self._solver.fresh(size) for size in sizes]
        self._solver.unify(dim, self._solver.total(parts))
        return parts

    def freeze(self, dims: Dim | Sequence[Dim], reason: str) -> None:
        """Forbid cutting these dims."""
        for dim in [dims] if isinstance(dims, Dim) else dims:
            self._solver.freeze(dim, reason)

    def freeze_all(self, dims: Any, reason: str) -> None:
        """Forbid cutting any dim of a value, nested in lists as its results are."""
        _freeze_all(self, dims, reason)

    def settled(self, dim: Dim) -> bool:
        """Whether no unit of a dim may be cut any more, whatever comes."""
        dim = find(dim)
        if dim.form == "atom":
            return dim.frozen is not None or bool(dim.size == 1)
        return all(map(self.settled, dim.parts))

    def couple(self, dims: Dim | Sequence[Dim], reason: str) -> None:
        """Cutting these dims changes statistics of what stays."""
        for dim in [dims] if isinstance(dims, Dim) else dims:
            self._solver.couple(dim, reason)

    def at_least(self, dim: Dim, count: int) -> None:
        """So many units must stay."""
        self._solver.at_least(dim, count)

    def point(self, dim: Dim, item: int | None = None) -> None:
        """The integers of the result (of its `item`-th value) are positions along `dim`.

        Cutting a unit renumbers those behind it, in what makes positions and in what they address
        alike. Where a reader's rule does not ask (`pointed`), the dim is frozen.
        """
        self.positions[self.node, item] = dim

    def role(self, dim: Dim, role: str) -> None:
        """Note what a dim is used as, for its name."""
        self._solver.role(dim, role)

    def literal(self, path: Path, *dims: Dim) -> None:
        """The integer at `path` in the arguments is the total size of `dims`."""
        self.literal_dims.append((self.node.name, path, list(dims)))

    def use(self, path: Path, dim: int, of: Dim, kind: str = "zero") -> None:
        """The operand at `path` is consumed along `dim`."""
        if not isinstance(find(of).size, int):
            # Units merged with the batch: no mask of fixed length says what their removal means.
            self.freeze(of, "consumed together with a symbolic size")
        self.use_dims.append((self.node.name, path, dim, of, kind))

    def broadcast(self, *operands: Dims) -> Dims:
        """Unify dims as element-wise ops do; returns the dims of the result."""
        rank = max((len(dims) for dims in operands), default=0)
        result: Dims = []
        for position in range(-rank, 0):
            present = [dims[position] for dims in operands if len(dims) >= -position]
            wide = [dim for dim in present if find(dim).size != 1]
            for dim in wide[1:]:
                self.unify(wide[0], dim)
            result.append(wide[0] if wide else present[0])
        return result


Rule = Callable[[Rules], Any]
Tensors = dict[str, tuple[str, tuple[int, ...]]]  # every name -> (first name, shape)


def shape_of(value: Any) -> list[Any]:
    """Sizes as ints or sympy expressions."""
    return [int(s) if isinstance(s, int) else _expression(s) for s in value.shape]


def _expression(size: Any) -> Any:
    expr = size.node.expr
    return int(expr) if expr.is_Integer else expr


def analyse(graph: fx.Graph, tensors: Tensors, rules: Any) -> AxisTable:
    """Run the rules over a graph.

    Args:
        graph: nodes with fake values in `meta["val"]`.
        tensors: every name of a parameter or buffer -> (its first name, its shape).
        rules: `esper.ir.rules.Registry`, looked up by call target.
    """
    with no_collection():
        solver = Solver()
        view = Rules(solver)
        tensor_dims: dict[str, Dims] = {}
        for node in graph.nodes:
            solver.current = Mark("", node.name, str(node.target))
            view.node = node
            if node.op == "get_attr":
                view.dims[node] = _tensor(solver, tensor_dims, node, tensors)
            elif node.op == "placeholder":
                view.dims[node] = _interface(view, node.meta.get("val"), "graph input (contract)")
            elif node.op == "output":
                for value in node.all_input_nodes:
                    _freeze_all(view, view.dims.get(value), "graph output (contract)")
                    _freeze_all(view, view.positions.get((value, None)), "graph output (contract)")
            else:
                _call(view, node, rules)
        return _resolve(view, tensor_dims, graph)


def _tensor(solver: Solver, seen: dict[str, Dims], node: fx.Node, tensors: Tensors) -> Dims | None:
    if str(node.target) not in tensors:
        return None
    name, shape = tensors[str(node.target)]
    if name not in seen:
        seen[name] = [solver.fresh(int(size)) for size in shape]
    return seen[name]


def _interface(view: Rules, value: Any, reason: str) -> Any:
    if hasattr(value, "shape"):
        return [view.fresh(size, reason) for size in shape_of(value)]
    return None


def _freeze_all(view: Rules, dims: Any, reason: str) -> None:
    if isinstance(dims, Dim):
        view.freeze(dims, reason)
    elif isinstance(dims, (list, tuple)):
        for item in dims:
            _freeze_all(view, item, reason)


def _call(view: Rules, node: fx.Node, rules: Any) -> None:
    value = node.meta.get("val")
    operands = [view.dims.get(operand) for operand in node.all_input_nodes]
    rule = rules.lookup(node.target)
    if rule is not None:
        view.followed = set()
        view.dims[node] = rule(view)
        _positions(view, node, rules)
        return
    if any(dims for dims in operands) or _is_tensor(value):
        view.unknown[node.name] = str(node.target)
    for dims in [*operands, *(view.positions.get((x, None)) for x in node.all_input_nodes)]:
        _freeze_all(view, dims, f"no axis rule for {node.target}")
    if isinstance(value, (list, tuple)):
        view.dims[node] = [_interface(view, item, "made by an op without a rule") for item in value]
    else:
        view.dims[node] = _interface(view, value, f"no axis rule for {node.target}")


def _positions(view: Rules, node: fx.Node, rules: Any) -> None:
    """Pass positions on through ops that only move values; freeze what others read."""
    for operand in node.all_input_nodes:
        if node.target is operator.getitem:
            dim = view.positions.get((operand, node.args[1]))  # type: ignore[arg-type]
        else:
            dim = view.positions.get((operand, None))
        if dim is None or operand in view.followed:
            continue
        if node.target is operator.getitem or (
            rules.moves(node.target) and operand is node.args[0]
        ):
            view.point(dim)
        else:
            view.freeze(dim, f"its positions are read by {node.target}")


def _is_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_tensor, value))
    return hasattr(value, "shape")


class _Resolver:
    def __init__(self) -> None:
        self.table = AxisTable()
        self._terms: dict[int, Term] = {}
        self._numbers: dict[int, int] = {}

    def term(self, dim: Dim) -> Term:
        """Immutable term of a dim; atoms are numbered in order of first appearance."""
        dim = find(dim)
        known = self._terms.get(dim.serial)
        if known is not None:
            return known
        term: Term
        if dim.form == "atom":
            if dim.size == 1:
                term = ONE
            else:
                number = len(self.table.atoms)
                self.table.sizes[number] = dim.size if isinstance(dim.size, int) else 0
                frozen = dim.frozen
                if frozen is None and not isinstance(dim.size, int):
                    frozen = Mark(f"symbolic size {dim.size}", dim.born.node, dim.born.op)
                self.table.atoms[number] = AtomInfo(
                    frozen, dim.coupled, frozenset(dim.roles), dim.least
                )
                term = Atom(number)
        elif dim.form == "product":
            term = product([self.term(part) for part in dim.parts])
            self._freeze_diagonals(term)
        else:
            term = total([self.term(part) for part in dim.parts])
        self._terms[dim.serial] = term
        return term

    def _freeze_diagonals(self, term: Term) -> None:
        if not isinstance(term, Product):
            return
        seen: set[int] = set()
        for factor in term.factors:
            inner = set(atoms_of(factor))
            for atom in inner & seen:
                info = self.table.atoms[atom]
                if info.frozen is None:
                    mark = Mark("occurs twice in one product", "")
                    self.table.atoms[atom] = replace(info, frozen=mark)
            seen |= inner


def _resolve(view: Rules, tensor_dims: dict[str, Dims], graph: fx.Graph) -> AxisTable:
    resolver = _Resolver()
    table = resolver.table
    for name, dims in tensor_dims.items():
        table.tensors[name] = tuple(resolver.term(dim) for dim in dims)

    def terms(dims: Any) -> Any:
        if isinstance(dims, Dim):
            return resolver.term(dims)
        if isinstance(dims, (list, tuple)):
            return tuple(terms(item) for item in dims)
        return None

    for node in graph.nodes:
        if view.dims.get(node) is not None:
            table.values[node.name] = terms(view.dims[node])
    table.literals = [
        Literal(node, path, tuple(resolver.term(dim) for dim in dims))
        for node, path, dims in view.literal_dims
    ]
    table.uses = [
        Use(node, path, dim, resolver.term(of), kind) for node, path, dim, of, kind in view.use_dims
    ]
    table.unknown = dict(view.unknown)
    _index(table)
    return table


def _index(table: AxisTable) -> None:
    for literal in table.literals:
        for atom in {a for term in literal.terms for a in atoms_of(term)}:
            table.literals_of.setdefault(atom, []).append(literal)
    for use in table.uses:
        for atom in set(atoms_of(use.term)):
            table.uses_of.setdefault(atom, []).append(use)
    for name, terms in table.tensors.items():
        for atom in {a for term in terms for a in atoms_of(term)}:
            table.tensors_of.setdefault(atom, []).append(name)
    for name, value in table.values.items():
        for atom in {a for term in _leaves(value) for a in atoms_of(term)}:
            table.values_of.setdefault(atom, []).append(name)


def _leaves(value: Any) -> list[Term]:
    if isinstance(value, (Atom, Product, Sum)):
        return [value]
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return []
