"""Running a traced model part by part: values of chosen nodes on a batch, in bounded memory.

A `Frame` is one batch in flight: the values that later nodes still need, and where it stands.
Advancing it computes up to a node and frees every value at its last use, so several batches can
wait at the same node of a model that changes between two steps. Parameters are read when they are
used and never held, so a frame sees weights that were replaced behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from esper.errors import UsageError
from esper.ir.binder import binder
from esper.passbase import Batch

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass
class Frame:
    """One batch in flight: live values by node name, the node that runs next, values to keep."""

    values: dict[str, Any]
    at: str
    kept: set[str] = field(default_factory=set)

    def nbytes(self) -> int:
        """Bytes of the tensors held, storages shared by views counted once."""
        storages = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for leaf in pytree.tree_leaves(self.values)
            if isinstance(leaf, torch.Tensor)
        }
        return sum(storages.values())


@dataclass
class _Order:
    """Graph order of one graph object."""

    graph: fx.Graph
    nodes: list[fx.Node]
    index: dict[str, int]
    dies_after: dict[str, list[str]] = field(default_factory=dict)
    last_use: dict[str, str] = field(default_factory=dict)


class Runner:
    """Runs one model in evaluation mode, whatever mode it is in, without changing it.

    Mode switches are overridden argument by argument, and an op that writes to a parameter or
    buffer writes to a copy of it.

    Args:
        model: read at every step, so it may change behind the frames.
        keep: nodes whose values stay in a frame beyond their last use, until `release`.
    """

    def __init__(self, model: Model, keep: Iterable[str] = ()) -> None:
        self.model = model
        self._keep = frozenset(keep)
        self._bind = binder(model)
        self._known: _Order | None = None
        tensors = [tensor for _, tensor in model.all_tensors()]
        self.device = tensors[0].device if tensors else torch.device("cpu")

    def start(self, batch: Batch) -> Frame:
        """A frame before the first computation. Raises UsageError if the batch does not fit."""
        args, kwargs = batch
        try:
            leaves = self._bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise UsageError(f"a calibration batch does not fit the model: {error}") from error
        inputs = self.model.graph.find_nodes(op="placeholder")
        values = {
            node.name: leaf.to(self.device) if isinstance(leaf, torch.Tensor) else leaf
            for node, leaf in zip(inputs, leaves, strict=True)
        }
        return Frame(values, self._order().nodes[0].name, set(self._keep))

    def before(self, frame: Frame, node: str) -> None:
        """Advance until `node` would run next; its operands are then live (see `value`)."""
        order = self._order()
        self._run(frame, order, order.index[node])

    def through(self, frame: Frame, node: str) -> Any:
        """Advance until `node` has run, unless it has, and return its value.

        The value stays in the frame only while later nodes need it, or while it is kept.
        """
        order = self._order()
        end = order.index[node] + 1
        if order.index[frame.at] >= end:
            return frame.values[node]
        return self._run(frame, order, end)

    def release(self, frame: Frame, node: str) -> None:
        """Keep a value no longer."""
        frame.kept.discard(node)
        order = self._order()
        last = order.last_use.get(node, node)
        if order.index[last] < order.index[frame.at]:
            frame.values.pop(node, None)

    def value(self, frame: Frame, node: fx.Node) -> Any:
        """A live value, or the tensor that a `get_attr` node reads."""
        if node.op == "get_attr":
            value: Any = self.model
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        return frame.values[node.name]

    def _run(self, frame: Frame, order: _Order, end: int) -> Any:
        result: Any = None
        with torch.no_grad():
            for node in order.nodes[order.index[frame.at] : end]:
                if node.op in ("get_attr", "placeholder"):
                    result = self.value(frame, node)
                else:
                    result = self._execute(frame, node)
                    if node.users or node.name in frame.kept:
                        frame.values[node.name] = result
                for name in order.dies_after.get(node.name, ()):
                    if name not in frame.kept:
                        frame.values.pop(name, None)
        if order.index[frame.at] < end:
            frame.at = order.nodes[end].name  # the output node runs never, so there is a next
        return result

    def _execute(self, frame: Frame, node: fx.Node) -> Any:
        args, kwargs = node.args, node.kwargs
        for path, (evaluating, _) in node.meta.get("modes", {}).items():
            args, kwargs = _with(args, kwargs, path, evaluating)
        read: Any = fx.map_arg((args, kwargs), lambda n: self.value(frame, n))
        if _writes_state(node):
            read = ((read[0][0].clone(), *read[0][1:]), read[1])
        if node.op == "call_function":
            return node.target(*read[0], **read[1])  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(read[0][0], str(node.target))(*read[0][1:], **read[1])
        return self.model.get_submodule(str(node.target))(*read[0], **read[1])

    def _order(self) -> _Order:
        graph = self.model.graph
        if self._known is None or self._known.graph is not graph:
            nodes = list(graph.nodes)
            index = {node.name: i for i, node in enumerate(nodes)}
            order = _Order(graph, nodes, index)
            for node in nodes:
                if node.users and node.op != "get_attr":
                    last = max(node.users, key=lambda user: index[user.name])
                    order.dies_after.setdefault(last.name, []).append(node.name)
                    order.last_use[node.name] = last.name
            self._known = order
        return self._known


def capture(model: Model, nodes: Iterable[str], batch: Batch) -> dict[str, Any]:
    """Values of some nodes on one batch, in evaluation mode.

    Nothing after the last of them runs, and other intermediates are freed at their last use.
    """
    order = {node.name: i for i, node in enumerate(model.graph.nodes)}
    runner = Runner(model)
    frame = runner.start(batch)
    return {name: runner.through(frame, name) for name in sorted(nodes, key=order.__getitem__)}


def _with(args: Any, kwargs: Any, path: tuple[Any, ...], value: Any) -> tuple[Any, Any]:
    def put(container: Any, steps: tuple[Any, ...]) -> Any:
        if not steps:
            return value
        if isinstance(container, dict):
            return {**container, steps[0]: put(container[steps[0]], steps[1:])}
        items = list(container)
        items[steps[0]] = put(items[steps[0]], steps[1:])
        return tuple(items) if isinstance(container, tuple) else items

    return (
        (args, put(dict(kwargs), path)) if isinstance(path[0], str) else (put(args, path), kwargs)
    )


def _writes_state(node: fx.Node) -> bool:
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target._schema.is_mutable
        and bool(node.args)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].op == "get_attr"
    )
