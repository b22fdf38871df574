"""Gates: one multiplier per unit at every place where the unit is consumed.

With all gates at one the model computes what it did; the gradient of a loss with respect to a
gate is the first-order effect of removing that unit, over all its consumers at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from esper.ir.modes import get_path, set_path
from esper.ir.terms import unit_index

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
UNSCALED = ("one", "lowest", "highest")


def gated(model: Model, axes: Sequence[str]) -> tuple[Model, dict[str, torch.nn.Parameter]]:
    """A copy of the model with gates, and the gate vector of each axis.

    Args:
        model: not changed; the copy's own parameters do not require gradients.
        axes: axis IDs.

    Returns:
        The gated copy, and axis ID -> parameter of shape (units,), all ones.
    """
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    table, anatomy = copied.table, copied.anatomy
    gates: dict[str, torch.nn.Parameter] = {}
    tensors = dict(copied.named_parameters())
    like = next((t for t in tensors.values() if t.dtype.is_floating_point), torch.ones(()))
    nodes = copied.nodes
    for number, axis_id in enumerate(axes):
        axis = anatomy.axes[axis_id]
        gate = torch.nn.Parameter(torch.ones(axis.size, dtype=like.dtype, device=like.device))
        copied.register_parameter(f"gate_{number}", gate)
        gates[axis_id] = gate
        for place, use in enumerate(table.uses_of.get(axis.atom, ())):
            if use.kind in UNSCALED:
                continue  # a unit is left out there by a value other than zero
            index = torch.from_numpy(unit_index(use.term, axis.atom, table.sizes))
            node = nodes[use.node]
            operand = get_path(node, use.path)
            rank = operand.meta["val"].ndim
            shape = [-1] + [1] * (rank - use.dim - 1)
            # Positions that the axis does not own read a constant one behind the last unit.
            index = torch.where(index < 0, axis.size, index)
            name = f"gate_{number}_{place}"
            copied.register_buffer(name, index.to(like.device), persistent=False)
            with copied.graph.inserting_before(node):
                read = copied.graph.get_attr(f"gate_{number}")
                where = copied.graph.get_attr(name)
                padded = copied.graph.call_function(aten.pad.default, (read, [0, 1], "constant", 1))
                spread = copied.graph.call_function(aten.index_select.default, (padded, 0, where))
                shaped = copied.graph.call_function(aten.view.default, (spread, shape))
                scaled = copied.graph.call_function(aten.mul.Tensor, (operand, shaped))
            for made in (read, where, padded, spread, shaped):
                made.meta = {"val": None, "module": "", "source": ""}
            scaled.meta = {key: operand.meta.get(key) for key in ("val", "module", "source")}
            set_path(node, use.path, scaled)
    copied.graph.lint()
    copied.recompile()
    return copied, gates
