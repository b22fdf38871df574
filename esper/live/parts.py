"""Which values the signals of phages and slots come from, in the present structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.terms import atoms_of
from esper.ir.weights import read_of
from esper.live.taps import Tap

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
# Ops that are linear in weight and bias together, and the arguments that these are.
_AFFINE: dict[Any, tuple[int, ...]] = {
    aten.linear.default: (1, 2),
    aten.addmm.default: (0, 2),
    aten.mm.default: (1,),
    aten.matmul.default: (1,),
    **{getattr(aten, f"conv{n}d").default: (1, 2) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 2) for n in (1, 2, 3)},
    aten.layer_norm.default: (2, 3),
    aten.batch_norm.default: (1, 2),
    aten.group_norm.default: (2, 3),
}
_PASSING = (
    aten.dropout.default, aten.view.default, aten.reshape.default, aten.permute.default,
    aten.transpose.int, aten.contiguous.default, aten.clone.default,
)  # fmt: skip


@dataclass
class Parts:
    """Taps of a structure, and what each tells about.

    Attributes:
        taps: what to listen to.
        value: phage or slot -> its tap.
        alpha: slot -> the tap at its alpha.
        dense: masked tensor -> the tap at its masked value.
        weights: phage -> parameters whose sum of w * dL/dw is its dL/dm, for compiled models.
    """

    taps: list[Tap] = field(default_factory=list)
    value: dict[str, int] = field(default_factory=dict)
    alpha: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    weights: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def tap(self, tap: Tap) -> int:
        """Its number; taps that are alike are one."""
        if tap not in self.taps:
            self.taps.append(tap)
        return self.taps.index(tap)


def parts(model: Model, dense: tuple[str, ...] = ()) -> Parts:
    """Phages, slots with or without a seed, and the masked tensors that are named."""
    found = Parts()
    nodes, anatomy = model.nodes, model.anatomy
    for name, phage in anatomy.phages.items():
        if not _floats(nodes.get(phage.exit)):
            continue
        entry = phage.entry if phage.bypassable and not phage.branch else None
        found.value[name] = found.tap(Tap(phage.exit, entry, _others(model, phage.exit)))
        if entry is None:
            weights = _weights(model, nodes[phage.exit])
            if weights:
                found.weights[name] = weights
    lives = model.ecology.slots()
    for name in dict.fromkeys([*anatomy.slots, *lives]):
        life, slot = model.ecology.slot(name), anatomy.slots.get(name)
        places = (life.output, life.input, "" if slot is None else slot.node)
        place = next((p for p in places if _floats(nodes.get(p))), None)
        if place is not None:
            found.value[name] = found.tap(Tap(place, None, _others(model, place)))
        reads = model.readers().get(life.alpha, ()) if life.alpha else ()
        if len(reads) == 1:
            found.alpha[name] = found.tap(Tap(reads[0], leaf=True))
    for name in dense:
        for read in model.readers().get(name, ()):
            for user in nodes[read].users:
                if read_of(user) is nodes[read] and user is not nodes[read]:
                    found.dense[name] = found.tap(Tap(user.name, whole=True))
    return found


def _floats(node: fx.Node | None) -> bool:
    value = None if node is None else node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _others(model: Model, name: str) -> tuple[int, ...]:
    """Dims of a value that hold no axis of parameters: batch and positions."""
    axes = {axis.atom for axis in model.anatomy.axes.values()}
    terms = model.table.values.get(name)
    if not isinstance(terms, tuple):
        return ()
    return tuple(dim for dim, term in enumerate(terms) if not axes.intersection(atoms_of(term)))


def _weights(model: Model, node: fx.Node) -> tuple[str, ...]:
    """Parameters that a value is linear in, all together; none where others read them too."""
    while node.target in _PASSING:
        node = node.args[0]  # type: ignore[assignment]
    names: list[str] = []
    canonical = model.canonical_names()
    for position in _AFFINE.get(node.target, ()):
        operand = node.args[position] if position < len(node.args) else None
        if operand is None:
            continue
        read = read_of(operand)
        if read is None or len(read.users) != 1:
            return ()
        name = canonical[str(read.target)]
        parameter = dict(model.named_parameters()).get(name)
        if parameter is None or not parameter.requires_grad or len(model.readers()[name]) != 1:
            return ()
        names.append(name)
    return tuple(names)
