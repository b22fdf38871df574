"""Checks of the graph itself: order, reads, metadata, shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir import modes, shapes
from esper.ir.printer import print_node
from esper.ir.scope import Scope

if TYPE_CHECKING:
    from esper.ir.model import Model

_UNBACKED = re.compile(r"\bu\d+\b")


def order(model: Model, scope: Scope) -> Iterator[str]:
    """order: operands are in the graph and come before; names are unique; one output, last."""
    if scope.local:
        for node in scope.nodes:
            for operand in node.all_input_nodes:
                if operand.graph is not node.graph or operand >= node:
                    yield _early(model, node, operand)
        return
    seen: set[fx.Node] = set()
    names: set[str] = set()
    nodes = list(model.graph.nodes)
    for node in nodes:
        for operand in node.all_input_nodes:
            if operand not in seen:
                yield _early(model, node, operand)
        if node.name in names:
            yield f"order: two nodes are called %{node.name}: {_line(model, node)}"
        seen.add(node)
        names.add(node.name)
    outputs = [node for node in nodes if node.op == "output"]
    if len(outputs) != 1 or nodes[-1] is not outputs[0]:
        last = _line(model, nodes[-1]) if nodes else "the graph is empty"
        yield f"order: the graph has {len(outputs)} outputs, or does not end with one: {last}"


def attributes(model: Model, scope: Scope) -> Iterator[str]:
    """attributes: every tensor that is read exists."""
    for node in scope.graph_nodes(model):
        if node.op != "get_attr":
            continue
        value: Any = model
        for part in str(node.target).split("."):
            value = getattr(value, part, None)
        if value is None:
            yield f"attributes: there is no {node.target}: {_line(model, node)}"


def lint(model: Model, scope: Scope) -> Iterator[str]:
    """lint: whatever else torch.fx itself complains of."""
    if scope.local:
        return  # nothing that it looks at has changed
    try:
        model.graph.lint()
    except (RuntimeError, ValueError) as error:
        yield f"lint: {' '.join(str(error).split())[:300]}"


def metadata(model: Model, scope: Scope) -> Iterator[str]:
    """metadata: nodes carry a value and a module path; mode-dependent literals fit the mode."""
    for node in scope.graph_nodes(model):
        if "val" not in node.meta:
            yield f"metadata: no value is recorded: {_line(model, node)}"
        if not isinstance(node.meta.get("module", ""), str):
            yield f"metadata: the module path is no text: {_line(model, node)}"
        for path, values in node.meta.get("modes", {}).items():
            try:
                present = modes.get_path(node, path)
            except (IndexError, KeyError, TypeError):
                yield f"metadata: modes name an argument that is not there: {_line(model, node)}"
                continue
            if present != values[int(model.training)]:
                yield (
                    f"metadata: argument {path[0]} is {present!r}, which is wrong: {values[0]!r} "
                    f"in evaluation, {values[1]!r} in training: {_line(model, node)}"
                )


def shapes_of(value: Any) -> str:
    """Shape and dtype text in which sizes that depend on data are all alike."""
    return _UNBACKED.sub("u", shapes.describe(value))


def computed_values(model: Model, scope: Scope) -> Iterator[str]:
    """shapes: each node computes, from what its operands record, what it records itself."""
    mode = shapes.fake_mode(model.graph)
    for node in scope.nodes:
        if node.op not in ("call_function", "get_attr") or node.name in scope.evaluated:
            continue
        recorded = node.meta.get("val")
        try:
            found = shapes.evaluate(model, node, mode)
        except Exception as error:  # noqa: BLE001 - ops raise all sorts of errors on wrong shapes
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            yield f"shapes: it cannot be computed ({text[:200]}): {_line(model, node)}"
            continue
        if shapes_of(found) != shapes_of(recorded) or _devices(found) != _devices(recorded):
            yield f"shapes: it computes {_placed(found)}: {_line(model, node)}"


def leaves(model: Model, scope: Scope) -> Iterator[str]:
    """leaves: parameters are leaf tensors with memory, so that an optimizer can move them."""
    for name, parameter in model.named_parameters():
        if not parameter.is_leaf or parameter.is_meta:
            kind = "has no memory" if parameter.is_meta else "is no leaf"
            yield f"leaves: parameter {name} {kind}: {shapes.describe(parameter)}"


def _devices(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [device for item in value for device in _devices(item)]
    return [str(value.device)] if isinstance(value, torch.Tensor) else []


def _placed(value: Any) -> str:
    devices = sorted(set(_devices(value)))
    return (
        f"{shapes.describe(value)} on {', '.join(devices)}" if devices else shapes.describe(value)
    )


def _early(model: Model, node: fx.Node, operand: fx.Node) -> str:
    return f"order: %{operand.name} is used before it is computed: {_line(model, node)}"


def _line(model: Model, node: fx.Node) -> str:
    return print_node(model, node)
