"""The trunk of a graph: values that carry the input through the parameters, and its dominators.

A value belongs to the *trunk* when it depends on a tensor input and on a parameter. Everything
else is context that regions may read from outside: masks and position ids (no parameter behind
them), rotary tables and relative biases (no input behind them), symbolic sizes (not tensors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import networkx as nx
import torch
from torch import fx

if TYPE_CHECKING:
    from esper.ir.model import Model

QUANTISED = ("_int8", "_int4")  # ends of names of buffers that hold what was a parameter


class Tree:
    """A dominator tree with constant-time ancestor tests.

    Args:
        parents: node -> immediate dominator; roots map to None.
    """

    def __init__(self, parents: Mapping[fx.Node, fx.Node | None]) -> None:
        self._children: dict[fx.Node | None, list[fx.Node]] = {}
        for node, parent in parents.items():
            self._children.setdefault(parent, []).append(node)
        self._span: dict[fx.Node, tuple[int, int]] = {}
        self._preorder: list[fx.Node] = []
        for root in self._children.get(None, ()):
            self._number(root)

    def _number(self, root: fx.Node) -> None:
        stack: list[tuple[fx.Node, bool]] = [(root, False)]
        begin: dict[fx.Node, int] = {}
        while stack:
            node, done = stack.pop()
            if done:
                self._span[node] = (begin[node], len(self._preorder))
                continue
            begin[node] = len(self._preorder)
            self._preorder.append(node)
            stack.append((node, True))
            stack += [(child, False) for child in self._children.get(node, ())]

    def dominates(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether `a` is `b` or above it."""
        first, last = self._span[a]
        return first <= self._span[b][0] < last

    def __contains__(self, node: fx.Node) -> bool:
        """Whether the tree has this node; those that lead nowhere are in none."""
        return node in self._span

    def subtree(self, node: fx.Node) -> list[fx.Node]:
        """`node` and everything below it."""
        first, last = self._span[node]
        return self._preorder[first:last]


class Dataflow:
    """Trunk, context and dominators of one graph.

    Attributes:
        order: node -> position in the graph.
        dependent: nodes whose value depends on a tensor input.
        trunk: dependent tensor-valued nodes with a parameter behind them, in graph order.
        dominators: tree over the trunk; an edge means every trunk path from the roots passes it.
        post_dominators: the same towards the output; values that reach no output are left out.
    """

    def __init__(self, model: Model) -> None:
        known = weights(model)
        self._parameters = set(known)
        self._matrices = {name for name, p in known.items() if p.ndim > 1}
        self._names = model.canonical_names()
        self.order = {node: i for i, node in enumerate(model.graph.nodes)}
        self.dependent: set[fx.Node] = set()
        self._reads: dict[fx.Node, frozenset[str]] = {}
        self.trunk: dict[fx.Node, None] = {}
        self._classify()
        self.dominators = self._tree(forward=True)
        self.post_dominators = self._tree(forward=False)

    def _classify(self) -> None:
        behind: set[fx.Node] = set()  # nodes with a parameter behind them
        none: frozenset[str] = frozenset()
        for node in self.order:
            if node.op == "output":
                continue
            inputs = node.all_input_nodes
            if node.op == "placeholder":
                if isinstance(node.meta.get("val"), torch.Tensor):
                    self.dependent.add(node)
            elif _carries(node) and any(i in self.dependent for i in inputs):
                self.dependent.add(node)
            name = str(node.target)
            if node.op == "get_attr" and name in self._parameters:
                self._reads[node] = frozenset((self._names[name],))
                behind.add(node)
                continue
            # What a node reads through constants; behind the inputs it belongs to those nodes.
            self._reads[node] = none.union(
                *(self._reads[i] for i in inputs if i not in self.dependent)
            )
            if any(i in behind for i in inputs):
                behind.add(node)
                if node in self.dependent:
                    self.trunk[node] = None

    def parameters_of(self, nodes: Iterable[fx.Node]) -> list[str]:
        """Canonical names of parameters that dependent nodes read, directly or by constants."""
        found: dict[str, None] = {}
        for node in nodes:
            found.update(dict.fromkeys(sorted(self._reads[node])))
        return list(found)

    def reads_matrix(self, node: fx.Node) -> bool:
        """Whether a node reads a parameter of two or more dimensions itself."""
        return any(name in self._matrices for name in self._reads[node])

    def is_parametrised(self, node: fx.Node) -> bool:
        """Whether a node reads a parameter itself."""
        return bool(self._reads[node])

    def uses(self, node: fx.Node) -> list[fx.Node]:
        """What consumes a trunk value: trunk nodes, the output, and whoever reads its sizes."""
        found: dict[fx.Node, None] = {}
        stack = list(node.users)
        while stack:
            user = stack.pop()
            if user in self.trunk or user.op == "output":
                found[user] = None
            else:  # a size of the value: what matters is who uses that size
                stack.extend(user.users)
        return list(found)

    def _tree(self, *, forward: bool) -> Tree:
        """Dominators from a virtual root over the trunk's sources, or its sinks."""
        graph: nx.DiGraph[fx.Node | str] = nx.DiGraph()
        root = "root"
        graph.add_node(root)
        for node in self.trunk:
            before = node.all_input_nodes if forward else list(node.users)
            inside = [b for b in before if b in self.trunk]
            graph.add_edges_from((b, node) for b in inside)
            if (forward and not inside) or any(b.op == "output" for b in before):
                graph.add_edge(root, node)
        parents = nx.immediate_dominators(graph, root)
        return Tree(
            {
                node: parent if isinstance(parent, fx.Node) else None
                for node, parent in parents.items()
                if isinstance(node, fx.Node)
            }
        )

    def reaches(self, source: fx.Node, targets: set[fx.Node], within: set[fx.Node]) -> bool:
        """Whether a path outside `within` leads from `source` to one of `targets`."""
        last = max((self.order[t] for t in targets), default=-1)
        seen = {source}
        stack = [source]
        while stack:
            for user in stack.pop().users:
                if user in targets:
                    return True
                if user not in seen and user not in within and self.order[user] < last:
                    seen.add(user)
                    stack.append(user)
        return False


def weights(model: Model) -> dict[str, torch.Tensor]:
    """Parameters by every name, and buffers that hold quantised ones (`..._int8`, `..._int4`)."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if buffer.dtype in (torch.int8, torch.uint8) and name.endswith(QUANTISED)
    }


def _carries(node: fx.Node) -> bool:
    """Whether a node computes tensors; sizes and predicates about sizes are context."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, torch.Tensor) for item in value)
    return isinstance(value, torch.Tensor)
