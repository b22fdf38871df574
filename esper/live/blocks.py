"""Compilation block by block: a change compiles the blocks that it touches, and no others.

Regions of the graph that repeat (`Model.anatomy.phages`) become functions of their tensors, each
compiled for itself; what lies between them runs as it is. Two blocks of equal code and equal sizes
are one function, so a stack of equal layers is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.regions import Phage

Function = Callable[..., Any]
_KEPT = 256  # compiled blocks that are remembered, the least recently used are forgotten first


class BlockCompiler:
    """Makes the function that a model runs out of compiled blocks.

    Args:
        model: whose regions are compiled.
        options: of `torch.compile`.
    """

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self._model = model
        self._options = options
        self._compiled: dict[object, Function] = {}

    def weave(self, forward: Function) -> Function:
        """A function of the same signature that calls compiled blocks; `forward` without any."""
        regions = list(blocks(self._model))
        if not regions:
            return forward
        graph = _copied(self._model.graph)
        nodes = {node.name: node for node in graph.nodes}
        for region in regions:
            self._outline(graph, [nodes[name] for name in region.nodes])
        woven: Function = type(fx.GraphModule(self._model, graph, "Woven")).forward
        return woven

    def _outline(self, graph: fx.Graph, members: list[fx.Node]) -> None:
        """Replace nodes by one call of a compiled function of everything that they read."""
        inside = set(members)
        reads = list(
            dict.fromkeys(n for m in members for n in m.all_input_nodes if n not in inside)
        )
        left = [m for m in members if any(user not in inside for user in m.users)]
        body = fx.Graph()
        twins: dict[fx.Node, fx.Node] = {
            node: body.placeholder(f"read_{i}") for i, node in enumerate(reads)
        }
        for i, node in enumerate(members):
            twins[node] = body.node_copy(node, twins.__getitem__)
            twins[node].name = f"node_{i}"
        body.output(tuple(twins[node] for node in left))
        # After the last thing that is read, before the first that reads what leaves.
        with graph.inserting_after(members[-1]):
            call = graph.call_function(self._function(body, reads), tuple(reads))
        for place, node in enumerate(left):
            with graph.inserting_after(call):
                item = graph.call_function(_item, (call, place))
            node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in inside)
        for node in reversed(members):
            graph.erase_node(node)

    def _function(self, body: fx.Graph, reads: list[fx.Node]) -> Function:
        module = fx.GraphModule(torch.nn.Module(), body, "Block")
        sizes = tuple(_size(self._model, node) for node in reads)
        key = (module.code, sizes)
        known = self._compiled.pop(key, None)
        if known is None:
            compiled = torch.compile(module, **self._options)

            def known(*values: Any) -> Any:
                return compiled(*values)

        self._compiled[key] = known
        while len(self._compiled) > _KEPT:
            del self._compiled[next(iter(self._compiled))]
        return known


def blocks(model: Model) -> Iterator[Phage]:
    """Outermost regions that hold at most half of the graph's operations and do not overlap."""
    whole = sum(node.op == "call_function" for node in model.graph.nodes)
    taken: set[str] = set()
    for phage in model.anatomy.phages.values():
        if len(phage.nodes) * 2 <= whole and not taken.intersection(phage.nodes):
            taken.update(phage.nodes)
            yield phage


def _item(values: tuple[Any, ...], place: int) -> Any:
    return values[place]


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, twins)
    new.output(output)
    for node, twin in twins.items():
        twin.name = node.name
    new.set_codegen(graph._codegen)
    return new


def _size(model: Model, node: fx.Node) -> object:
    """Sizes of parameters tell functions apart; those of values are the compiler's to guard."""
    tensor = model.tensor(str(node.target)) if node.op == "get_attr" else None
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype)
