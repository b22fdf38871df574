"""Growth behind a mask (MSG, arXiv:2305.02869), and the rewrite that lets the new units in.

New units may hold anything: a buffer that is one at old and zero at new units multiplies them
wherever they are consumed. `RampUnits` raises the zeros; at one the buffer and its products go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from esper.ir.modes import get_path
from esper.ir.terms import atoms_of, size_of, unit_index
from esper.passbase import Rewrite
from esper.plan import Edit, Erase, Insert, Plan, Ref, Refusal, ReplaceUses, SetArg
from esper.propose import RampUnits
from esper.state import Drop, Op, Replace, StateTransform
from esper_passes.liveness import fresh
from esper_passes.outgoing import apart

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

aten = torch.ops.aten
_LEAF = "growth_mask"


@dataclass
class Masks:
    """Buffers by name, and the edits that put them to use."""

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)


def masks(model: Model, axis: Axis, count: int) -> Masks | Refusal:
    """Masks for `count` new units at every place where units of the axis are consumed."""
    table, nodes = model.table, model.nodes
    larger = {**table.sizes, axis.atom: axis.size + count}
    taken = {name for name, _ in model.all_tensors()}
    found = Masks()
    inserted = set(nodes)
    made: dict[tuple[fx.Node, int], str] = {}
    products = [n for n in nodes.values() if n.target in (aten.matmul.default, aten.bmm.default)]
    for use in table.uses_of.get(axis.atom, ()):
        node = nodes[use.node]
        if apart(model, axis, use):
            continue
        if use.kind != "zero":
            return Refusal("no-mask", f"%{node.name} takes statistics over {axis.id}", node.name)
        operand = get_path(node, use.path)
        if operand.op == "get_attr":
            continue
        first = next(u for u in table.uses_of[axis.atom] if u.node == use.node)
        if use is not first and (node in products or _attends(node)):
            continue  # one masked factor is enough
        if (operand, use.dim) not in made:
            module = str(node.meta.get("module", ""))
            name = fresh(taken, f"{module}.{_LEAF}" if module else _LEAF)
            taken.add(name)
            owner = unit_index(use.term, axis.atom, larger)
            mask = torch.from_numpy(owner < axis.size).to(operand.meta["val"].dtype)
            rank = operand.meta["val"].ndim
            device = next(iter(model.parameters())).device
            found.buffers[name] = mask.reshape([-1] + [1] * (rank - use.dim - 1)).to(device)
            read, product = (fresh(inserted, f"{node.name}_{s}") for s in ("mask", "masked"))
            inserted |= {read, product}
            found.edits += [
                Insert(read, "get_attr", name, (), node.name, module=module),
                Insert(
                    product,
                    "call_function",
                    aten.mul.Tensor,
                    (Ref(operand.name), Ref(read)),
                    node.name,
                    module=module,
                ),
            ]
            made[operand, use.dim] = product
        found.edits.append(SetArg(node.name, use.path, Ref(made[operand, use.dim])))
    return found


def _attends(node: fx.Node) -> bool:
    return node.target is aten.scaled_dot_product_attention.default


def ramp(axis: str, ticks: int) -> Iterator[RampUnits]:
    """One proposal for each of `ticks` boundaries, alpha rising linearly to one."""
    for tick in range(1, ticks + 1):
        yield RampUnits(axis=axis, alpha=tick / ticks, proposer="ramp")


class RampUnitsRewrite(Rewrite):
    """Masked units take a value of alpha; at one, masks that hold nothing else go."""

    type = "ramp-units"

    def plan(self, model: Model, proposal: RampUnits) -> Plan | Refusal:
        """Refuses (`no-mask`) where no unit of the axis is behind a mask."""
        axis, table = model.anatomy.axes[proposal.axis], model.table
        ops: dict[str, tuple[Op, ...]] = {}
        edits: list[Edit] = []
        for name in table.tensors_of.get(axis.atom, ()):
            if not name.rpartition(".")[2].startswith(_LEAF):
                continue
            mask = model.tensor(name)
            assert mask is not None
            term = next(t for t in table.tensors[name] if axis.atom in atoms_of(t))
            owner = torch.from_numpy(unit_index(term, axis.atom, table.sizes)) >= 0
            assert len(owner) == size_of(term, table.sizes)
            value = mask.detach().clone()
            flat = value.reshape(-1)
            flat[owner.to(value.device) & (flat < 1)] = proposal.alpha
            if bool((flat == 1).all()):
                edits += _open(model, name)
                ops[name] = (Drop(),)
            elif not torch.equal(value, mask):
                ops[name] = (Replace(value),)
        if not ops:
            return Refusal(
                "no-mask",
                f"no unit of {axis.id} is behind a mask that alpha {proposal.alpha:g} would change",
                axis.id,
                "grow with init masked first",
            )
        return Plan(
            proposal=proposal,
            summary=f"new units of {axis.id} pass at {proposal.alpha:g}",
            edits=tuple(edits),
            state=StateTransform(ops),
            tolerance="lossy",
            figures={"alpha": proposal.alpha, "masks": len(ops)},
        )


def _open(model: Model, name: str) -> list[Edit]:
    """Products with the mask become their other factor."""
    edits: list[Edit] = []
    for reader in model.readers()[name]:
        for product in model.nodes[reader].users:
            (value,) = [n for n in product.all_input_nodes if n.name != reader]
            edits += [ReplaceUses(product.name, value.name), Erase(product.name)]
        edits.append(Erase(reader))
    return edits


def masked_units(model: Model, axis: Axis) -> list[int]:
    """Birth numbers of units that are not fully let in yet."""
    table = model.table
    behind: set[int] = set()
    for name in table.tensors_of.get(axis.atom, ()):
        mask = model.tensor(name)
        if mask is None or not name.rpartition(".")[2].startswith(_LEAF):
            continue
        term = next(t for t in table.tensors[name] if axis.atom in atoms_of(t))
        owner = unit_index(term, axis.atom, table.sizes)
        low = (mask.detach().reshape(-1) < 1).cpu().numpy()
        behind.update(np.unique(owner[low & (owner >= 0)]).tolist())
    return [axis.unit_ids[i] for i in sorted(behind)]
