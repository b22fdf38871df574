"""Driving one pass or rewrite over a copy of a model, through the manager."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.trace import trace
from esper.manager import PassManager
from esper.passbase import Context, Pass, Remark
from esper.plan import Refusal
from esper.propose import Proposal
from esper.records import Record


def drive(
    pass_: Pass, model: Model, context: Context | None = None
) -> tuple[Model, list[Record], list[Remark]]:
    """A changed copy, the records of what the pass proposed, and its remarks."""
    changed = copy.deepcopy(model)
    manager = PassManager(changed, verify="full")
    records: list[Record] = []
    remarks: list[Remark] = []
    steps = pass_.propose(changed, context or Context())
    answer: Record | None = None
    while True:
        try:
            item = steps.send(answer)
        except StopIteration:
            return changed, records, remarks
        answer = None
        if isinstance(item, Remark):
            remarks.append(item)
        else:
            answer = manager.apply(item, pass_)
            assert answer.kind != "failure", answer.line()
            records.append(answer)


def apply(model: Model, proposal: Proposal) -> tuple[Model, Record]:
    """A changed copy and the record."""
    changed = copy.deepcopy(model)
    return changed, PassManager(changed, verify="full").apply(proposal)


def refused(model: Model, proposal: Proposal) -> Record:
    """The record of a refusal, after checking that the model is as it was."""
    changed, record = apply(model, proposal)
    assert record.kind == "missed", record.line()
    assert graphs_equal(changed, model) is None
    same_state(changed, model)
    return record


def refusal(model: Model, proposal: Proposal) -> Refusal:
    """The refusal of a dry run."""
    plan = PassManager(model).plan(proposal)
    assert isinstance(plan, Refusal)
    return plan


def same_state(a: nn.Module, b: nn.Module) -> None:
    """Assert that names, dtypes and bits of all tensors agree."""
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def ops(model: Model) -> list[str]:
    """Names of the ops called, in graph order."""
    return [
        node.target._schema.name.split("::")[1]
        for node in model.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]


def outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Tensors that a call returns, without gradients."""
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(module(*args, **kwargs)) if t is not None]


def drift(
    a: nn.Module, b: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> float:
    """Largest difference of outputs relative to the largest output; ports must agree."""
    worst = 0.0
    for x, y in zip(outputs(a, args, kwargs or {}), outputs(b, args, kwargs or {}), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        worst = max(worst, float((x - y).abs().max() / x.abs().max()))
    return worst


def traced(module: nn.Module, *args: Any, **options: Any) -> Model:
    """Trace in float64 and evaluation mode, vectors moved off their neutral values."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return trace(module, args, **options)
