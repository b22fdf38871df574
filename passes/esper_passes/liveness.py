"""Which nodes and tensors go when some values lose their users; shared by rewrites that erase."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import fx

from esper.plan import Edit, Erase
from esper.state import Drop, Op

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


def has_effects(node: fx.Node) -> bool:
    """Whether a node matters even if nobody uses its value.

    Batch norm in training mode updates its statistics, though its schema does not say so.
    """
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    if node.target is aten.batch_norm.default:
        return bool(node.args[5])
    return mutates(node) or node.is_impure()


def mutates(node: fx.Node) -> bool:
    """Whether the op writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"
    return any(a.alias_info is not None for a in target._schema.arguments)


def written_later(node: fx.Node) -> bool:
    """Whether a user writes into the value, directly or through a view."""
    return any(
        mutates(user) or (is_view(user) and written_later(user))
        for user in node.users
        if user.op == "call_function"
    )


def dead_nodes(model: Model) -> list[fx.Node]:
    """Nodes whose results reach no output and no effect, in graph order."""
    dead: set[fx.Node] = set()
    for node in reversed(model.graph.nodes):
        if not has_effects(node) and all(user in dead for user in node.users):
            dead.add(node)
    return [node for node in model.graph.nodes if node in dead]


def dying(model: Model, abandoned: Iterable[fx.Node], keep: fx.Node | None = None) -> list[fx.Node]:
    """Nodes that go when the `abandoned` ones lose all their users, in graph order.

    `keep` is the node that takes over their uses. A batch norm that goes takes the counter of
    its batches along.
    """
    dead = set(abandoned)
    stack = list(dead)
    while stack:
        node = stack.pop()
        counter = node.meta.get("counter")
        if counter is not None:
            for read in model.graph.find_nodes(op="get_attr", target=counter):
                dead.update((read, *read.users))
        for source in node.all_input_nodes:
            if source in dead or source is keep:
                continue
            if source.op == "placeholder" or mutates(source):
                continue
            if all(user in dead for user in source.users):
                dead.add(source)
                stack.append(source)
    return sorted(dead)


def erase(nodes: Iterable[fx.Node]) -> list[Edit]:
    """Edits that erase nodes, users before what they use."""
    return [Erase(node.name) for node in sorted(nodes, reverse=True)]


def counters(model: Model, gone: set[fx.Node]) -> set[str]:
    """Canonical names of batch counters that living batch norms own."""
    names = model.canonical_names()
    return {
        names.get(counter, counter)
        for node in model.graph.nodes
        if node not in gone and (counter := node.meta.get("counter")) is not None
    }


def unread(model: Model, gone: Iterable[fx.Node]) -> list[str]:
    """Canonical names of tensors read by nodes in `gone` and by nobody else."""
    names = model.canonical_names()
    gone = set(gone)
    lost = {names[str(n.target)] for n in gone if n.op == "get_attr" and str(n.target) in names}
    for node in gone:
        counter = node.meta.get("counter")
        if counter in names:
            lost.add(names[counter])
    kept = {
        names[str(node.target)]
        for node in model.graph.find_nodes(op="get_attr")
        if node not in gone and str(node.target) in names
    }
    return sorted(lost - kept - counters(model, gone))


def drops(tensors: Iterable[str]) -> dict[str, tuple[Op, ...]]:
    """Operations that drop tensors."""
    return {name: (Drop(),) for name in tensors}


def fresh(taken: Iterable[str], base: str) -> str:
    """`base`, or `base_n` where that is taken."""
    taken = set(taken)
    name, number = base, 1
    while name in taken:
        name = f"{base}_{number}"
        number += 1
    return name
