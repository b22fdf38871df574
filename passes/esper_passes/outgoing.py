"""Where units act on what follows, and which tensors can keep new ones out of it.

A unit acts where it is consumed: a contraction, a sum, an attention score. There it contributes
nothing if the weight that it meets is zero. Where two computed values meet (queries and keys) or
nothing does (a sum), the value itself must be zero, so what computes it must be: the places are
found by going back through ops that map zero to zero.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esper.ir.modes import get_path
from esper.ir.terms import atoms_of
from esper.ir.weights import MASK, read_of
from esper.plan import Refusal
from esper_passes.origins import Origins, overlap

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.axes import Use
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

aten = torch.ops.aten
Place = tuple[str, int]  # tensor, dim
# The operand that is a weight and the weight's dim that is contracted.
_LAYERS: dict[Any, tuple[int, int]] = {
    aten.linear.default: (1, 1),
    **{getattr(aten, f"conv{n}d").default: (1, 1) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 1) for n in (1, 2, 3)},
    aten.conv_transpose1d.default: (1, 0),
    aten.conv_transpose2d.input: (1, 0),
    aten.conv_transpose3d.input: (1, 0),
}
# What consumes each of its operands linearly.
_CONTRACTIONS = {
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.cumsum.default,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.scaled_dot_product_attention.default,
}
# Where ops that treat groups of channels apart from each other say how many there are.
_GROUPS = ((6,), ("groups",))


@dataclass
class Outgoing:
    """Places that decide what units do.

    Attributes:
        places: positions along that dim of that tensor, before growth; None for all that hold
            the axis.
        linear: whether each unit's effect is linear in them, so that it may be shared out.
    """

    places: dict[Place, IntArray | None]
    linear: bool = True


def outgoing(model: Model, axis: Axis) -> Outgoing | Refusal:
    """Refuses with `no-outgoing-weight` where no tensor decides, `shared-tensor` where one that
    does serves something else too.
    """
    uses: dict[str, list[Use]] = defaultdict(list)
    for use in model.table.uses_of.get(axis.atom, ()):
        if not apart(model, axis, use):
            uses[use.node].append(use)
    if not uses:
        return Refusal("no-outgoing-weight", f"nothing reads the units of {axis.id}", axis.id)
    found = Outgoing({})
    origins = Origins(model, axis.atom)
    met: dict[Place, set[str]] = defaultdict(set)
    for name, here in uses.items():
        places = _weight(model, axis, name, here)
        if places is None:
            traced = _operand(model, origins, name, here)
            if traced is None:
                target = model.nodes[name].target
                return Refusal(
                    "no-outgoing-weight",
                    f"units of {axis.id} are consumed at %{name} ({target}) without a weight "
                    "that could keep new ones out of the function",
                    name,
                    "widen an axis that linear layers or convolutions read",
                )
            found.linear &= traced.linear
            for place, positions in traced.places.items():
                found.places[place] = _union(found.places.get(place, positions), positions)
            continue
        for place, readers in places.items():
            found.places[place] = None
            met[place] |= readers
    return _serves_others(model, met) or found


def apart(model: Model, axis: Axis, use: Use) -> bool:
    """Whether an op consumes each group of channels by itself, and the units are the groups: what
    is computed from new ones then belongs to new ones.
    """
    group_norm = use.kind == "group_norm"
    paths = ((1,),) if group_norm else _GROUPS
    return any(
        literal.node == use.node and literal.path in paths
        for literal in model.table.literals_of.get(axis.atom, ())
    )


def _weight(model: Model, axis: Axis, name: str, uses: list[Use]) -> dict[Place, set[str]] | None:
    """The weight that the units meet at a node, with the nodes that meet it there."""
    node, table = model.nodes[name], model.table
    if any(use.kind != "zero" for use in uses):
        return None
    if node.target in _LAYERS:
        operand, dim = _LAYERS[node.target]
        read = read_of(node.args[operand])
    else:
        reads = [(read_of(get_path(node, use.path)), use.dim) for use in uses]
        weights = [(r, d) for r, d in reads if r is not None]
        if not weights:
            return None
        read, dim = weights[-1]
    if read is None:
        return None
    tensor = model.canonical_names()[str(read.target)]
    dim %= len(table.tensors[tensor])
    if axis.atom not in atoms_of(table.tensors[tensor][dim]):
        return None
    return {(tensor, dim): {name}}


def _operand(model: Model, origins: Origins, name: str, uses: list[Use]) -> Outgoing | None:
    """What computes one operand, such that it is zero where its units are new."""
    if any(use.kind != "zero" for use in uses):
        return None
    node = model.nodes[name]
    every = [origins.of(get_path(node, use.path)) for use in uses]
    for index, found in enumerate(every):
        if found is None:
            continue
        others = [o for i, o in enumerate(every) if i != index and o is not None]
        if any(overlap(found.places, other.places) for other in others):
            continue
        beside = [get_path(node, use.path) for i, use in enumerate(uses) if i != index]
        linear = found.linear and node.target in _CONTRACTIONS
        linear &= not any(origins.depends(value, found) for value in beside)
        return Outgoing(found.places, linear)  # the other operand goes on learning
    return None


def _union(a: IntArray | None, b: IntArray | None) -> IntArray | None:
    return None if a is None or b is None else np.union1d(a, b)


def _serves_others(model: Model, met: dict[Place, set[str]]) -> Refusal | None:
    nodes = model.nodes
    for (name, _), readers in met.items():
        for reader in model.readers().get(name, ()):
            users = {user.name for user in nodes[reader].users if user.target is not MASK}
            behind = [user for user in nodes[reader].users if user.target is MASK]
            others = users.union(u.name for mask in behind for u in mask.users) - readers
            if others:
                return Refusal(
                    "shared-tensor",
                    f"{name} serves %{min(others)} too, which the new units would reach",
                    min(others),
                    "untie the tensor before",
                )
    return None
