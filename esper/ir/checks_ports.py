"""Checks of the contract with callers, as recorded when the model was traced."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

from esper.ir.codec import CodecError
from esper.ir.ports import read_ports
from esper.ir.printer import print_node
from esper.ir.scope import Scope

if TYPE_CHECKING:
    from esper.ir.model import Model


def ports(model: Model, scope: Scope) -> Iterator[str]:
    """ports: inputs, outputs and their structure are those recorded."""
    recorded = model.ports
    if recorded is None:
        yield "ports: none are recorded, so a change of the signature would go unnoticed"
        return
    if scope.local and not any(node.op in ("placeholder", "output") for node in scope.nodes):
        return
    try:
        found = read_ports(model)
    except CodecError as error:
        yield f"ports: {error}"
        return
    nodes = list(model.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    for before, now, node in zip_longest(recorded.inputs, found.inputs, inputs):
        if before != now:
            line = print_node(model, nodes[-1] if node is None else node)
            yield f"ports: input was {before}, is {now}: {line}"
    for before, now in zip_longest(recorded.outputs, found.outputs):
        if before != now:
            yield f"ports: output was {before}, is {now}: {print_node(model, nodes[-1])}"
    if recorded.structure != found.structure:
        yield f"ports: the structure of inputs or outputs changed: {print_node(model, nodes[-1])}"


def ties(model: Model, scope: Scope) -> Iterator[str]:
    """ties: names that stood for one tensor still do, as far as they exist."""
    if model.ports is None:
        return
    axes = [model.anatomy.axes[name] for name in scope.axes or ()]
    cut = {tensor for axis in axes for tensor, _ in axis.members}
    groups = [g for g in model.ports.ties if not scope.local or not cut.isdisjoint(g)]
    if not groups:
        return
    canonical = model.canonical_names()
    for names in groups:
        alive = [name for name in names if name in canonical]
        for name in alive[1:]:
            if canonical[name] != canonical[alive[0]]:
                readers = [n for n in model.graph.find_nodes(op="get_attr") if n.target == name]
                line = f": {print_node(model, readers[0])}" if readers else ""
                yield f"ties: {name} is no longer {alive[0]}{line}"
