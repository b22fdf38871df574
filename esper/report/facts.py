"""What a report says about a model, read from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.report.data import AxisRow, ModelFacts

if TYPE_CHECKING:
    from esper.ir.model import Model

CELLS = 64
"""Axes with at most this many units are drawn unit by unit, and carry unit numbers."""


def from_model(model: Model) -> list[AxisRow]:
    """The axes of a model that live in parameters, in the order of the parameters."""
    parameters = {name for name, _ in model.named_parameters()}
    rows = []
    for axis in model.anatomy.axes.values():
        held = [tensor for tensor, _ in axis.members if tensor in parameters]
        if not held:
            continue
        modules = tuple(dict.fromkeys(tensor.rpartition(".")[0] or tensor for tensor in held))
        units = axis.unit_ids if axis.size <= CELLS else ()
        rows.append(
            AxisRow(
                id=axis.id,
                kind=axis.kind,
                size=axis.size,
                units=units,
                frozen=axis.frozen_reason,
                lossy=axis.lossy_reason,
                modules=modules,
            )
        )
    return rows


def facts(model: Model) -> ModelFacts:
    """Size and anatomy of a model; tied tensors count once."""
    calls = [node for node in model.graph.nodes if node.op == "call_function"]
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return ModelFacts(
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=model.nbytes(),
        layers=sum(
            any(n.op == "get_attr" and str(n.target) in parameters for n in node.all_input_nodes)
            for node in calls
        ),
        operations=len(calls),
        axes=tuple(from_model(model)),
    )
