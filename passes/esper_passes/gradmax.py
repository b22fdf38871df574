"""Gradient-informed growth: new units come in where the loss would use them most.

After GradMax (Evci et al., arXiv:2201.05125): with M the sum over samples of (gradient at the
layer behind) times (input of the layer before), the leading singular vectors of M are the weights
of new units for which the gradient of their other side is largest. GradMax puts them into outgoing
weights, which needs an activation with a slope at zero; here they go into incoming weights and
outgoing ones are zero, so the function stays with any activation. For a linear unit the gradient
norm of the outgoing weights is then the largest that incoming weights of that norm can give.

In convolutions (section 3.3 there) a unit is a channel, its incoming weights act on the patches
under the kernel, and its outgoing weights have a place for each offset: M has a row for each pair
of output channel and offset, and is the gradient that the weight of the layer behind would have
if it read those patches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight

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
        axis: ID of an axis of neurons or channels between linear layers or convolutions.
        count: how many units come.
        batches: given to `loss` one by one.
        loss: `loss(model, batch)`, a scalar.
        fields: further fields of the proposal.

    Raises:
        UsageError: the axis is not made by one linear layer or convolution in one group and read
            by such layers, or is read at other positions than those at which it is made.
    """
    found = _layers(model, model.anatomy.axes[axis])
    if isinstance(found, Refusal):
        raise UsageError(f"gradmax: {found.reason}")
    producer, consumers = found
    weight = model.tensor(producer.weight)
    assert weight is not None
    matrix = producer.matrix(weight.detach().double())
    if count > matrix.shape[1]:
        raise UsageError(f"gradmax: {count} units have no more than {matrix.shape[1]} directions")
    # A copy: in training mode batch norms would count what they see.
    tap = _Tap(copy.deepcopy(model), producer, consumers)
    samples: list[_Sample] = []
    for batch in batches:
        tap.clear()
        with torch.enable_grad():
            value = loss(tap, batch)
            gradients = torch.autograd.grad(value, [read.behind for read in tap.reads])
        patches = _patches(producer, tap.before, weight, tap.made)
        for read in tap.reads:
            _same_positions(producer, patches, read)
        reads = zip(tap.reads, gradients, strict=True)
        samples.append(_Sample(patches, tuple((r.layer, g.double()) for r, g in reads)))
    if not samples:
        raise UsageError("gradmax needs a batch")
    kernels = {layer.node: _kernel(model, layer) for layer in consumers}
    product = _response(samples, kernels, lambda patches: patches)
    rows = torch.linalg.svd(product, full_matrices=True).Vh[:count]
    rows = torch.stack([_side(row, samples, kernels) for row in rows])
    rows = rows * matrix.square().sum(1).mean().sqrt()  # rows have unit length
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
    if layer.form == "columns":
        return weight.new_empty((rows.shape[1], rows.shape[0]))
    return weight.new_empty((rows.shape[0], *weight.shape[1:]))


@dataclass(frozen=True)
class _Sample:
    """One batch: what the producer reads at each position of its output, channels last, and the
    gradient at the output of each layer that reads the units.
    """

    patches: Tensor  # (batch, positions..., inputs)
    behind: tuple[tuple[Affine, Tensor], ...]


def _patches(producer: Affine, before: Tensor, weight: Tensor, made: Tensor) -> Tensor:
    kernel = tuple(weight.shape[2:]) if producer.form == "convolution" else ()
    rows = producer.rows(before.detach().double(), kernel)
    return rows.reshape(*made.movedim(producer.channel, -1).shape[:-1], rows.shape[-1])


def _same_positions(producer: Affine, patches: Tensor, read: _Read) -> None:
    there = read.operand.movedim(read.layer.channel, -1).shape[:-1]
    if there != patches.shape[:-1]:
        raise UsageError(
            f"gradmax: %{read.layer.node} reads units at {list(there)} positions, and "
            f"%{producer.node} makes them at {list(patches.shape[:-1])}: grow this axis with "
            "another init"
        )


def _kernel(model: Model, layer: Affine) -> tuple[int, ...]:
    weight = model.tensor(layer.weight)
    assert weight is not None
    return tuple(weight.shape[2:]) if layer.form == "convolution" else ()


def _response(
    samples: Sequence[_Sample],
    kernels: Mapping[str, tuple[int, ...]],
    unit: Callable[[Tensor], Tensor],
) -> Tensor:
    """Gradients of outgoing weights of units with these values: (outgoing places, units).

    Args:
        samples: of all batches.
        kernels: of convolutions that read the units, by node.
        unit: patches (..., inputs) -> values (..., units).
    """
    total: list[Tensor] = []
    for sample in samples:
        values = unit(sample.patches)
        parts = [_weight_gradient(la, values, g, kernels[la.node]) for la, g in sample.behind]
        total.append(torch.cat(parts))
    return torch.stack(total).sum(0)


def _weight_gradient(
    layer: Affine, values: Tensor, gradient: Tensor, kernel: tuple[int, ...]
) -> Tensor:
    """Of the weight of a layer that reads values (batch, positions..., units), as a matrix."""
    if layer.form != "convolution":
        return layer.outputs(gradient).T @ values.flatten(0, -2)
    pad = [side for sides in reversed(layer.padding) for side in sides]
    padded = functional.pad(values.movedim(-1, 1), pad)
    size = [gradient.shape[1], values.shape[-1], *kernel]
    of: Callable[..., Tensor] = conv1d_weight if len(kernel) == 1 else conv2d_weight
    found = of(padded, size, gradient, layer.stride, 0, layer.dilation)
    return found.movedim(1, -1).flatten(0, -2)


def _side(
    row: Tensor, samples: Sequence[_Sample], kernels: Mapping[str, tuple[int, ...]]
) -> Tensor:
    """The row or its negative, whichever rectified units would rather be."""
    both = torch.stack([row, -row], 1)
    own, negative = _response(samples, kernels, lambda x: (x @ both).relu()).norm(dim=0)
    return row if own >= negative else -row


def _layers(model: Model, axis: Axis) -> tuple[Affine, list[Affine]] | Refusal:
    """The layer whose rows the units are, and those that read them."""
    consumers: list[Affine] = []
    nodes = model.nodes
    for use in model.table.uses_of.get(axis.atom, ()):
        layer = affine(model, nodes[use.node])
        if not isinstance(layer, Affine):
            return Refusal(
                "no-linear",
                f"%{use.node} reads {axis.id} and is no linear layer, and no convolution in one "
                "group",
                use.node,
            )
        if use.path == (layer.operand,):
            consumers.append(layer)
    held = {name for name, _ in axis.members}
    reading = {layer.node for layer in consumers}
    layers = (affine(model, node) for node in nodes.values() if node.name not in reading)
    makers = [layer for layer in layers if isinstance(layer, Affine) and layer.weight in held]
    if len(makers) != 1 or not consumers:
        return Refusal(
            "no-linear", f"{axis.id} is made by {len(makers)} such layers, not by one", axis.id
        )
    return makers[0], consumers


@dataclass(frozen=True)
class _Read:
    """A layer that reads the units, what it read, and what left it."""

    layer: Affine
    operand: Tensor
    behind: Tensor


class _Tap(fx.Interpreter):
    """Runs the model and keeps what enters and leaves one layer and those that read it."""

    def __init__(self, model: Model, producer: Affine, consumers: list[Affine]) -> None:
        super().__init__(model)
        self._bind = binder(model)
        self._producer = producer
        self._consumers = {layer.node: layer for layer in consumers}
        self.clear()

    def clear(self) -> None:
        """Forget the values of the last batch."""
        self.before = self.made = torch.empty(0)
        self.reads: list[_Read] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = self.run(*self._bind(*args, **kwargs), enable_io_processing=False)
        return self.module.graph.process_outputs(flat)  # type: ignore[operator, union-attr]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name == self._producer.node:
            self.before, self.made = self._operand(n, self._producer), value
        if n.name in self._consumers:
            layer = self._consumers[n.name]
            self.reads.append(_Read(layer, self._operand(n, layer), value))
        return value

    def _operand(self, node: fx.Node, layer: Affine) -> Tensor:
        found: Tensor = self.env[node.args[layer.operand]]  # type: ignore[index]
        return found
