"""Copies of regions, with tensors of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.plan import Edit, Insert, Ref, ReplaceUses
from esper.state import Create, Op, StateTransform
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Copy:
    """Edits and tensors of a copy.

    Attributes:
        edits: nodes of the copy, and its way into the graph.
        state: tensors that it reads.
        nodes, parameters: how many nodes and parameter elements come.
        exact: whether the copy adds zeros and nothing else.
    """

    edits: tuple[Edit, ...]
    state: StateTransform
    nodes: int
    parameters: int
    exact: bool = True


def common_path(paths: Iterable[str]) -> str:
    """The longest module path that all of these lie under."""
    shared: list[str] = []
    for pieces in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return ".".join(shared)


def copied(
    model: Model,
    region: Sequence[str],
    entry: str,
    leaving: str,
    old_root: str,
    root: str,
    zeroed: Collection[str],
) -> Copy:
    """Nodes of a region once more, behind it.

    Args:
        model: where the region is.
        region: names of its nodes.
        entry: the node whose value enters; the copy takes that of `leaving` instead.
        leaving: the node whose value leaves, a member of the region.
        old_root: module path of the region.
        root: module path of the copy.
        zeroed: `get_attr` nodes whose tensors are zero in the copy.
    """
    nodes, names = model.nodes, model.canonical_names()
    members = sorted((nodes[name] for name in set(region)), key=_order(model))
    taken = set(nodes)
    tensors = {name for name, _ in model.all_tensors()}
    trained = {name for name, _ in model.named_parameters()}
    moved: dict[str, str] = {entry: leaving}
    made: dict[str, str] = {}  # tensor -> tensor of the copy
    ops: dict[str, tuple[Op, ...]] = {}
    edits: list[Edit] = []
    inserted: set[str] = set()
    nearest = _next(model, nodes[leaving])

    def path(module: str) -> str:
        if old_root and module != old_root and not module.startswith(f"{old_root}."):
            return root
        inside = module.removeprefix(old_root).lstrip(".")
        return f"{root}.{inside}" if inside else root

    def tensor(name: str, zero: bool) -> str:
        if name not in made:
            owner, _, leaf = name.rpartition(".")
            own = owner == old_root or owner.startswith(f"{old_root}.") or not old_root
            base = f"{path(owner) if own else f'{root}.{owner}'}.{leaf}"
            made[name] = fresh(tensors, base)
            tensors.add(made[name])
            value = model.tensor(name)
            assert value is not None
            start = torch.zeros_like(value) if zero else value.detach().clone()
            ops[made[name]] = (Create(start, trainable=name in trained),)
        return made[name]

    def insert(node: fx.Node, target: Any, module: str, counter: str) -> None:
        name = fresh(taken, f"{node.name}_copy")
        taken.add(name)
        inserted.add(name)
        edits.append(
            Insert(
                name,
                node.op,
                target,
                _refs(node.args, moved),
                nearest,
                kwargs=_refs(node.kwargs, moved),
                module=module,
                modes=dict(node.meta.get("modes", {})),
                counter=counter,
            )
        )
        moved[node.name] = name

    for node in members:
        for read in node.all_input_nodes:
            name = names.get(str(read.target), "") if read.op == "get_attr" else ""
            changes = name in trained or _statistics(name)
            if changes and read.name not in moved:
                mine = tensor(name, read.name in zeroed)
                insert(read, mine, path(str(read.meta.get("module", ""))), "")
        counter = str(node.meta.get("counter") or "")
        if counter:
            counter = tensor(counter, zero=False)
        insert(node, node.target, path(str(node.meta.get("module", ""))), counter)
    # The copy's readers are those of the region; the copy itself goes on reading the region.
    users = tuple(user.name for user in nodes[leaving].users)
    edits.append(ReplaceUses(leaving, moved[leaving], users))
    parameters = sum(
        op.value.numel() for (op,) in ops.values() if isinstance(op, Create) and op.trainable
    )
    return Copy(tuple(edits), StateTransform(ops), len(inserted), parameters)


def _statistics(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _order(model: Model) -> Any:
    order = {node: i for i, node in enumerate(model.graph.nodes)}
    return order.__getitem__


def _next(model: Model, node: fx.Node) -> str:
    """The node before which a copy goes: the first reader, as everything that it needs is there."""
    order = _order(model)
    return min(node.users, key=order).name


def _refs(value: Any, moved: Mapping[str, str]) -> Any:
    """Arguments as plans write them, with the nodes of the copy for those of the region."""
    if isinstance(value, fx.Node):
        return Ref(moved.get(value.name, value.name))
    if isinstance(value, dict):
        return {key: _refs(item, moved) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_refs(item, moved) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
