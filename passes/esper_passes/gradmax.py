"""Gradient-informed growth: new units come in where the loss would use them most.

After GradMax (Evci et al., arXiv:2201.05125): with M the sum over samples of (gradient at the
layer behind) times (input of the layer before), the leading singular vectors of M are the weights
of new units for which the gradient of their other side is largest. GradMax puts them into outgoing
weights, which needs an activation with a slope at zero; here they go into incoming weights and
outgoing ones are zero, so the function stays with any activation. For a linear unit the gradient
norm of the outgoing weights is then the largest that incoming weights of that norm can give.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.errors import UsageError
from esper.ir.binder import binder
from esper.plan import Refusal
from esper.propose import WidenUnits
from esper_passes.affine import Affine, affine
from esper_passes.refit import digest

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

# The loss of a model on a batch; it calls the model once, as its first argument.
Loss = Callable[[Callable[..., Any], Any], Tensor]


def gradmax(
    model: Model, axis: str, count: int, batches: Iterable[Any], loss: Loss, **fields: Any
) -> WidenUnits:
    """The proposal to grow with rows solved on these batches, which wait in `model.payloads`.

    Args:
        model: not changed, apart from its payloads.
        axis: ID of an axis of neurons between linear layers.
        count: how many units come.
        batches: given to `loss` one by one.
        loss: `loss(model, batch)`, a scalar.
        fields: further fields of the proposal.

    Raises:
        UsageError: the axis is not made by one linear layer and read by linear layers.
    """
    found = _layers(model, model.anatomy.axes[axis])
    if isinstance(found, Refusal):
        raise UsageError(f"gradmax: {found.reason}")
    producer, consumers = found
    weight = model.tensor(producer.weight)
    assert weight is not None
    if count > weight.shape[1]:
        raise UsageError(f"gradmax: {count} units have no more than {weight.shape[1]} directions")
    # A copy: in training mode batch norms would count what they see.
    tap = _Tap(copy.deepcopy(model), producer, consumers)
    samples: list[tuple[Tensor, Tensor]] = []  # gradients behind, inputs before
    for batch in batches:
        tap.clear()
        with torch.enable_grad():
            value = loss(tap, batch)
            gradients = torch.autograd.grad(value, tap.behind)
        inputs = tap.before.detach().double()
        behind = torch.cat([g.double().flatten(0, -2) for g in gradients], 1)
        samples.append((behind, inputs.flatten(0, -2)))
    if not samples:
        raise UsageError("gradmax needs a batch")
    product = torch.stack([g.T @ x for g, x in samples]).sum(0)
    rows = torch.linalg.svd(product, full_matrices=True).Vh[:count]
    rows = torch.stack([_side(row, samples) for row in rows])
    rows = rows * weight.detach().double().square().sum(1).mean().sqrt()  # rows have unit length
    payload = {producer.weight: producer.tensor(rows, _like(weight, rows, producer))}
    name = digest(payload)
    model.payloads[name] = payload
    return WidenUnits(axis=axis, count=count, init="gradmax", digest=name, **fields)


def solved_rows(model: Model, axis: Axis, proposal: WidenUnits) -> dict[str, Tensor] | Refusal:
    """The solved tensors of a proposal by the name of the tensor that takes them."""
    payload = model.payloads.get(proposal.digest)
    again = "call esper_passes.gradmax.gradmax on this model: only flight records keep solved rows"
    if payload is None:
        return Refusal("missing-payload", f"no solved rows are at hand for {axis.id}", None, again)
    if digest(payload) != proposal.digest:
        return Refusal(
            "changed-payload", f"the rows solved for {axis.id} were changed since", None, again
        )
    found = _layers(model, axis)
    if isinstance(found, Refusal):
        return found
    producer, _ = found
    weight, rows = model.tensor(producer.weight), payload.get(producer.weight)
    assert weight is not None
    dim = 1 if producer.form == "columns" else 0
    wanted = list(weight.shape)
    wanted[dim] = proposal.count
    if rows is None or list(rows.shape) != wanted:
        return Refusal("stale-payload", f"the rows solved for {axis.id} do not fit", None, again)
    return payload


def _like(weight: Tensor, rows: Tensor, layer: Affine) -> Tensor:
    shape = (rows.shape[1], rows.shape[0]) if layer.form == "columns" else tuple(rows.shape)
    return weight.new_empty(shape)


def _side(row: Tensor, samples: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The row or its negative, whichever rectified units would rather be."""

    def strength(candidate: Tensor) -> float:
        total = torch.stack([g.T @ (x @ candidate).relu() for g, x in samples]).sum(0)
        return float(total.norm())

    return row if strength(row) >= strength(-row) else -row


def _layers(model: Model, axis: Axis) -> tuple[Affine, list[Affine]] | Refusal:
    """The layer whose rows the units are, and those that read them."""
    consumers: list[Affine] = []
    nodes = model.nodes
    for use in model.table.uses_of.get(axis.atom, ()):
        layer = affine(model, nodes[use.node])
        if not isinstance(layer, Affine) or layer.form == "convolution":
            return Refusal(
                "no-linear", f"%{use.node} reads {axis.id} and is no linear layer", use.node
            )
        if use.path == (layer.operand,):
            consumers.append(layer)
    held = {name for name, _ in axis.members}
    reading = {layer.node for layer in consumers}
    layers = (affine(model, node) for node in nodes.values() if node.name not in reading)
    makers = [
        layer
        for layer in layers
        if isinstance(layer, Affine) and layer.form != "convolution" and layer.weight in held
    ]
    if len(makers) != 1 or not consumers:
        return Refusal(
            "no-linear", f"{axis.id} is made by {len(makers)} linear layers, not by one", axis.id
        )
    return makers[0], consumers


class _Tap(fx.Interpreter):
    """Runs the model and keeps what enters one layer and what leaves others."""

    def __init__(self, model: Model, producer: Affine, consumers: list[Affine]) -> None:
        super().__init__(model)
        self._bind = binder(model)
        self._producer = producer
        self._consumers = {layer.node for layer in consumers}
        self.clear()

    def clear(self) -> None:
        """Forget the values of the last batch."""
        self.before = torch.empty(0)
        self.behind: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = self.run(*self._bind(*args, **kwargs), enable_io_processing=False)
        return self.module.graph.process_outputs(flat)  # type: ignore[operator, union-attr]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name == self._producer.node:
            self.before = self.env[n.args[self._producer.operand]]  # type: ignore[index]
        if n.name in self._consumers:
            self.behind.append(value)
        return value
