"""Anatomy: stable IDs for axes, phages and slots.

IDs are derived from parameter names the first time a part is seen, then remembered: an axis is
recognised again by the tensor dimensions it occupies, whatever was cut since. IDs are never
reused, and units keep their birth numbers.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from esper.ir.collection import no_collection
from esper.ir.kernels import PACKED
from esper.ir.packed_axes import is_gone, sleeping
from esper.ir.pins import pinned_axes, pinned_regions
from esper.ir.rules.contraction import KERNEL
from esper.ir.rules.recurrent import GATES
from esper.ir.sleeping import awake
from esper.ir.terms import Atom, Product, Sum, Term
from esper.ir.unify import Mark

if TYPE_CHECKING:
    from esper.ir.axes import AxisTable
    from esper.ir.model import Model
    from esper.ir.regions import Phage, Slot

Member = tuple[str, int, int]  # tensor, dimension, leaf position within the dimension's term
NO_LEAF = -1  # leaf position of an axis of one unit, which a new analysis does not see
NO_ATOM = -1  # atom of such an axis
_NO_AXES = (KERNEL, GATES, PACKED)  # parts of a layer that are no units

# Which role names an axis when it has several: the most specific use wins.
_KINDS = (
    "experts",
    "hidden",
    "heads",
    "query-heads",
    "head-size",
    "vocabulary",
    "embedding",
    "groups",
    "channels",
)


@dataclass
class Identity:
    """What is remembered of an axis between analyses."""

    members: frozenset[Member]
    unit_ids: tuple[int, ...]
    next_unit: int
    kind: str


@dataclass
class Identities:
    """All identities of a model, living and retired.

    `regions` maps a phage ID to `{"path", "kind", "exit"}`, all text (`esper.ir.regions`); `pins`
    are globs of parts that the user keeps (`esper.ir.pins`).
    """

    axes: dict[str, Identity] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    regions: dict[str, dict[str, str]] = field(default_factory=dict)
    pins: tuple[str, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether an ID was given out, be its part alive or gone."""
        return name in self.axes or name in self.regions or name in self.retired

    def fresh(self, base: str, tried: dict[str, int]) -> str:
        """`base`, or the first of `base.2`, `base.3`, ... that was not given out.

        `tried` remembers the last number of each base, as long as names are only added.
        """
        number = tried.get(base, 1)
        name = base if number == 1 else f"{base}.{number}"
        while self.knows(name):
            number += 1
            name = f"{base}.{number}"
        tried[base] = number
        return name

    def copy(self) -> Identities:
        """Independent copy."""
        axes = {
            name: Identity(i.members, i.unit_ids, i.next_unit, i.kind)
            for name, i in self.axes.items()
        }
        regions = {name: dict(memory) for name, memory in self.regions.items()}
        return Identities(axes, set(self.retired), regions, self.pins)

    def assign(self, other: Identities) -> None:
        """Become equal to `other`, keeping this object's identity."""
        self.axes, self.retired = other.axes, other.retired
        self.regions, self.pins = other.regions, other.pins


@dataclass(frozen=True)
class Axis:
    """A set of units that can only be cut together across all tensors that hold them.

    Attributes:
        id: stable ID, `axis:<path>/<kind>`.
        kind: heads, kv-groups, query-heads, head-size, neurons, channels, groups, embedding,
            hidden, experts, ...
        size: number of units.
        unit_ids: position -> birth number of the unit.
        members: (tensor, dimension) pairs in which the units live.
        frozen_reason: why no unit may be cut, with the op and node that stop it; None if cuttable.
        lossy_reason: why a cut changes what stays (shared statistics); None if cuts are exact.
        atom: number of the axis in the present analysis; NO_ATOM if it left out a single unit, or
            if the axis sleeps.
        least: number of units that must stay, because so many are selected among them.
    """

    id: str
    kind: str
    size: int
    unit_ids: tuple[int, ...]
    members: tuple[tuple[str, int], ...]
    frozen_reason: str | None
    frozen_node: str | None
    lossy_reason: str | None
    atom: int
    least: int = 1

    @property
    def cuttable(self) -> bool:
        """Whether units may be cut at all."""
        return self.frozen_reason is None and self.size > self.least

    def positions(self, units: tuple[int, ...]) -> list[int]:
        """Positions of units given by birth number. Raises KeyError for one that is gone."""
        where = {unit: i for i, unit in enumerate(self.unit_ids)}
        return [where[unit] for unit in units]


class Anatomy:
    """Mappings from ID to part for the present state of a model."""

    def __init__(self, model: Model, identities: Identities) -> None:
        self._model = model
        self._identities = identities

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """Axes by ID, in the order of the parameters that they appear in."""
        with no_collection():
            parameters = {name for name, _ in self._model.named_parameters()}
            found = _axes(self._model.table, self._identities, parameters)
            return pinned_axes(found, self._identities.pins)

    def recognised(self) -> Identities:
        """The identities as they are once the axes of the present graph have been read.

        A copy where they have not been: looking must not give out IDs.
        """
        if "axes" in self.__dict__:
            return self._identities
        other = Anatomy(self._model, self._identities.copy())
        _ = other.axes
        return other._identities

    @cached_property
    def _parts(self) -> tuple[dict[str, Phage], dict[str, Slot]]:
        from esper.ir.regions import phages_and_slots
        from esper.ir.slots import known_slots

        with no_collection():
            model = awake(self._model)
            phages, slots = phages_and_slots(model)
            if model is not self._model:
                self._model.identities.assign(model.identities)
            pinned = pinned_regions(phages, self._identities.pins)
            return pinned, slots | known_slots(model)

    def forget_parts(self) -> None:
        """Phages and slots are found anew when next asked for; axes stay."""
        self.__dict__.pop("_parts", None)

    def resize(self, axis_id: str, unit_ids: tuple[int, ...]) -> None:
        """Set the units of one axis after a cut or its undoing; other axes are untouched."""
        identity = self._identities.axes[axis_id]
        identity.unit_ids = unit_ids
        old = self.axes[axis_id]
        self._model.table.sizes[old.atom] = len(unit_ids)
        self.axes[axis_id] = replace(old, size=len(unit_ids), unit_ids=unit_ids)

    @property
    def phages(self) -> dict[str, Phage]:
        """Committed modules and regions by ID."""
        return self._parts[0]

    @property
    def slots(self) -> dict[str, Slot]:
        """Places where growth may happen, by ID: borders of regions, and those that were named."""
        return self._parts[1]


def leaves(term: Term) -> list[int]:
    """Atoms of a term from left to right, with repetition; the list index is the leaf position."""
    if isinstance(term, Atom):
        return [term.id]
    children = term.factors if isinstance(term, Product) else term.parts
    return [leaf for child in children for leaf in leaves(child)]


def _members(table: AxisTable) -> dict[int, list[Member]]:
    members: dict[int, list[Member]] = {}
    for tensor, terms in table.tensors.items():
        for dim, term in enumerate(terms):
            for position, atom in enumerate(leaves(term)):
                frozen = table.atoms[atom].frozen
                if frozen is not None and frozen.reason in _NO_AXES:
                    continue
                members.setdefault(atom, []).append((tensor, dim, position))
    return members


def _axes(table: AxisTable, identities: Identities, parameters: set[str]) -> dict[str, Axis]:
    members = _members(table)
    _move_up(table, identities)
    known = {m: name for name, identity in identities.axes.items() for m in identity.members}
    kinds = _kinds(table)
    found: dict[str, int] = {}
    fresh: list[int] = []
    for atom, places in members.items():
        names = {known[m] for m in places if m in known}
        match = next(
            (
                name
                for name in sorted(names)
                if name not in found and len(identities.axes[name].unit_ids) == table.sizes[atom]
            ),
            None,
        )
        if match is None:
            fresh.append(atom)
        else:
            found[match] = atom
            identities.axes[match].members = frozenset(places)
    single = _single(table, identities, found)
    asleep = _asleep(table, identities, found.keys() | single.keys())
    _retire(identities, found.keys() | single.keys() | asleep.keys())
    tried: dict[str, int] = {}
    for atom in fresh:
        size = table.sizes[atom]
        name = _name(members[atom], kinds[atom], identities, tried)
        identities.axes[name] = Identity(
            frozenset(members[atom]), tuple(range(size)), size, kinds[atom]
        )
        found[name] = atom
    order = {atom: i for i, atom in enumerate(members)}
    axes = {
        name: _axis(name, atom, table, members[atom], identities.axes[name], parameters)
        for name, atom in sorted(found.items(), key=lambda item: order[item[1]])
    }
    return axes | single | asleep


def _move_up(table: AxisTable, identities: Identities) -> None:
    """Forget the leaves of axes of one unit once a new analysis leaves them out.

    Leaves behind them then stand that many places further to the left.
    """
    if 1 in table.sizes.values():  # this analysis is older than the cut and still holds them
        return
    gone: dict[tuple[str, int], list[int]] = {}
    for identity in identities.axes.values():
        if len(identity.unit_ids) == 1:
            for tensor, dim, leaf in identity.members:
                if leaf != NO_LEAF:
                    gone.setdefault((tensor, dim), []).append(leaf)
            identity.members = frozenset((t, d, NO_LEAF) for t, d, _ in identity.members)
    if not gone:
        return
    for identity in identities.axes.values():
        if len(identity.unit_ids) > 1:
            identity.members = frozenset(
                (t, d, leaf - sum(before < leaf for before in gone.get((t, d), ())))
                for t, d, leaf in identity.members
            )


def _single(table: AxisTable, identities: Identities, found: dict[str, int]) -> dict[str, Axis]:
    """Axes of one unit that the analysis no longer sees, while a tensor of theirs lives."""
    axes: dict[str, Axis] = {}
    for name, identity in identities.axes.items():
        places = _places(table, identity)
        if name not in found and len(identity.unit_ids) == 1 and places:
            axes[name] = Axis(
                name, identity.kind, 1, identity.unit_ids, tuple(places), None, None, None, NO_ATOM
            )
    return axes


def _asleep(table: AxisTable, identities: Identities, found: Set[str]) -> dict[str, Axis]:
    """Axes that live in nothing but packed tensors; see `esper.ir.packed_axes`."""
    axes: dict[str, Axis] = {}
    for name, tensor in sleeping(identities, found, table.tensors.keys()).items():
        identity = identities.axes[name]
        units, reason = identity.unit_ids, f"{tensor} is {PACKED}"
        axes[name] = Axis(
            name, identity.kind, len(units), units, tuple(_places(table, identity)),
            reason, None, None, NO_ATOM,
        )  # fmt: skip
    return axes


def _places(table: AxisTable, identity: Identity) -> list[tuple[str, int]]:
    """Tensors and dims of an axis that are there."""
    return sorted({(t, d) for t, d, _ in identity.members if t in table.tensors and not is_gone(d)})


def _retire(identities: Identities, found: Set[str]) -> None:
    for name in [name for name in identities.axes if name not in found]:
        del identities.axes[name]
        identities.retired.add(name)


def _axis(
    name: str,
    atom: int,
    table: AxisTable,
    members: list[Member],
    identity: Identity,
    parameters: set[str],
) -> Axis:
    info = table.atoms[atom]
    frozen = info.frozen
    if frozen is None and not any(tensor in parameters for tensor, _, _ in members):
        frozen = Mark("lives in no parameter", "")
    return Axis(
        name,
        identity.kind,
        table.sizes[atom],
        identity.unit_ids,
        tuple(dict.fromkeys((tensor, dim) for tensor, dim, _ in members)),
        None if frozen is None else frozen.reason,
        None if frozen is None else frozen.node,
        None if info.coupled is None else info.coupled.reason,
        atom,
        info.least,
    )


def _kinds(table: AxisTable) -> dict[int, str]:
    kinds: dict[int, str] = {}
    for atom, info in table.atoms.items():
        kind = next((kind for kind in _KINDS if kind in info.roles), None)
        if kind in (None, "channels") and "normalised" in info.roles:
            kind = "embedding"
        kinds[atom] = kind or ("neurons" if "neurons" in info.roles else "units")
    # Grouped-query attention: in groups x heads-within-group the outer atom owns keys and values.
    for terms in table.tensors.values():
        for term in terms:
            for product in _products(term):
                heads = [
                    f.id
                    for f in product.factors
                    if isinstance(f, Atom) and kinds[f.id] in ("heads", "query-heads", "kv-groups")
                ]
                if len(heads) > 1:
                    kinds[heads[0]] = "kv-groups"
                    kinds.update(dict.fromkeys(heads[1:], "query-heads"))
    return kinds


def _products(term: Term) -> list[Product]:
    if isinstance(term, Product):
        return [term, *(p for f in term.factors for p in _products(f))]
    if isinstance(term, Sum):
        return [p for part in term.parts for p in _products(part)]
    return []


def _name(members: list[Member], kind: str, identities: Identities, tried: dict[str, int]) -> str:
    modules = [tensor.rpartition(".")[0] for tensor, _, _ in members]
    producers = list(
        dict.fromkeys(
            m
            for m, (t, dim, _) in zip(modules, members, strict=True)
            if dim == 0 and t.rpartition(".")[2] == "weight"
        )
    )
    if kind in ("neurons", "channels", "units") and producers:
        path = producers[0] if len(producers) == 1 else _common(producers) or producers[0]
    else:
        path = _common(modules) or (producers or modules)[0]
    name = f"axis:{path or 'root'}/{kind}"
    if identities.knows(name) and producers:
        name = f"axis:{producers[0]}/{kind}"
    return identities.fresh(name, tried)


def _common(paths: list[str]) -> str:
    split = [path.split(".") for path in paths]
    shared: list[str] = []
    for pieces in zip(*split, strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return ".".join(shared)
