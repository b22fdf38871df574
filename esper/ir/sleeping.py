"""What sleeps in a model, and the model as it is awake: axes and regions are those of the latter.

Gates hide what they stand before. A sedation changes nothing of what is known of a model, whether
it was known before or is asked for meanwhile.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import fx

from esper.ir.module_tree import owner_of

if TYPE_CHECKING:
    from esper.ir.model import Model


def asleep(model: Model) -> list[str]:
    """IDs of the axes and regions that are sedated."""
    return [name for name, page in model.ecology.pages().items() if page.sedated]


def awake(model: Model) -> Model:
    """The model itself, or a copy without gates, on the same tensors, if something sleeps."""
    sleeping = asleep(model)
    if not sleeping:
        return model
    tensors = {id(tensor): tensor for _, tensor in model.all_tensors()}
    found = copy.deepcopy(model, tensors)
    for name in sleeping:
        page = found.ecology.immunity(name)
        _take_out(found, page.gates)
        found.ecology.set(name, page.model_copy(update={"gates": ()}))
    found.invalidate()
    return found


def _take_out(model: Model, gates: tuple[tuple[str, str], ...]) -> None:
    nodes = {node.name: node for node in model.graph.nodes}
    for name, original in reversed(gates):
        gate = nodes[name]
        read = gate.args[0]
        gate.replace_all_uses_with(nodes[original])
        model.graph.erase_node(gate)
        if isinstance(read, fx.Node) and read.op == "get_attr":
            model.graph.erase_node(read)
            delattr(owner_of(model, str(read.target)), str(read.target).rpartition(".")[2])
