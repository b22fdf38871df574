"""Everything a rollback must restore, as plain data that compares with `==`."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.model import Model
from esper.ir.shapes import describe
from esper.state import digest


def snapshot(model: Model) -> dict[str, Any]:
    """The state of a model: tensors bit for bit and by identity, graph, anatomy, history."""
    model.refresh()
    anatomy = model.anatomy
    return {
        "text": str(model),
        "code": model.code,
        "nodes": [
            (n.name, n.op, str(n.target), repr(n.args), repr(n.kwargs), describe(n.meta.get("val")))
            for n in model.graph.nodes
        ],
        "modes": {n.name: n.meta["modes"] for n in model.graph.nodes if "modes" in n.meta},
        "tensors": [(name, id(t), _bits(t), t.requires_grad) for name, t in model.all_tensors()],
        "gradients": [
            (name, None if p.grad is None else _bits(p.grad))
            for name, p in model.named_parameters()
        ],
        "state names": list(model.state_dict()),
        "axes": dict(anatomy.axes),
        "phages": dict(anatomy.phages),
        "slots": dict(anatomy.slots),
        "identities": repr(model.identities.axes),
        "retired": set(model.identities.retired),
        "regions": dict(model.identities.regions),
        "history": list(model.history),
        "training": {name: m.training for name, m in model.named_modules()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compare two snapshots part by part, so that a failure names the part."""
    assert before.keys() == after.keys()
    for part, value in before.items():
        assert after[part] == value, part


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.stride(), digest(tensor)
