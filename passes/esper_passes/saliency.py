"""Saliency of units: how much each unit matters, over everything that is cut with it.

All functions return axis ID -> float64 scores of shape (units,), higher is more important.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from esper.ir.binder import binder
from esper.ir.gates import gated
from esper.ir.terms import unit_index

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.passbase import Batch, Context

aten = torch.ops.aten
Scores = dict[str, torch.Tensor]
_WEIGHTED = {
    aten.linear.default: 1,
    aten.conv1d.default: 1,
    aten.conv2d.default: 1,
    aten.conv3d.default: 1,
    aten.matmul.default: 0,
    aten.addmm.default: 0,
    aten.mm.default: 0,
}


def magnitude(model: Model, axes: Sequence[Axis]) -> Scores:
    """L2 norm of all parameters that a unit owns (Li et al. 2017, grouped as in DepGraph 2023)."""
    parameters = {name for name, _ in model.named_parameters()}
    scores: Scores = {}
    for axis in axes:
        energy = torch.zeros(axis.size, dtype=torch.float64)
        for name in model.table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            if name not in parameters or tensor is None:
                continue
            square = tensor.detach().double().square().cpu()
            for dim, term in enumerate(model.table.tensors[name]):
                owner = torch.from_numpy(unit_index(term, axis.atom, model.table.sizes))
                if (owner >= 0).any():
                    rest = [d for d in range(square.ndim) if d != dim]
                    along = square.sum(rest) if rest else square
                    energy.index_add_(0, owner[owner >= 0], along[owner >= 0])
        scores[axis.id] = energy.sqrt()
    return scores


def random(axes: Sequence[Axis], seed: int) -> Scores:
    """Uniform scores from a seed: the baseline that any other saliency must beat."""
    generator = torch.Generator().manual_seed(seed)
    return {
        axis.id: torch.rand(axis.size, generator=generator, dtype=torch.float64) for axis in axes
    }


def activation(model: Model, axes: Sequence[Axis], batches: Sequence[Batch]) -> Scores:
    """Energy that a unit feeds into its consumers: E[x^2] times the consuming weights' norm.

    The product of activation and weight norms is that of Wanda (Sun et al. 2023), per unit.
    """
    uses = {
        (use.node, use.path, use.dim): use
        for axis in axes
        for use in model.table.uses_of.get(axis.atom, ())
    }
    energy: dict[Any, torch.Tensor] = {}
    watch = _Watch(model, uses, energy)
    with torch.no_grad():
        for args, kwargs in batches:
            watch.see(args, kwargs)
    scores: Scores = {}
    nodes = model.nodes
    for axis in axes:
        total = torch.zeros(axis.size, dtype=torch.float64)
        for use in model.table.uses_of.get(axis.atom, ()):
            along = energy[use.node, use.path, use.dim]
            along = along * _weight_energy(model, nodes[use.node], len(along))
            owner = torch.from_numpy(unit_index(use.term, axis.atom, model.table.sizes))
            total.index_add_(0, owner[owner >= 0], along[owner >= 0])
        scores[axis.id] = total.sqrt()
    return scores


class _Watch(fx.Interpreter):
    """Accumulates sums of squares of consumed operands along the consumed dimension."""

    def __init__(self, model: Model, uses: dict[Any, Any], energy: dict[Any, torch.Tensor]) -> None:
        super().__init__(model)
        self._bind = binder(model)
        self._energy = energy
        self._by_node: dict[str, list[Any]] = {}
        for key in uses:
            self._by_node.setdefault(key[0], []).append(key)

    def see(self, args: Any, kwargs: Any) -> None:
        """Run one batch."""
        self.run(*self._bind(*args, **kwargs), enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        for key in self._by_node.get(n.name, ()):
            from esper.ir.modes import get_path

            value = self.env[get_path(n, key[1])].detach().double()
            rest = [d for d in range(value.ndim) if d != key[2]]
            along = value.square().sum(rest).cpu()
            self._energy[key] = self._energy.get(key, torch.zeros_like(along)) + along
        return super().run_node(n)


def _weight_energy(model: Model, node: fx.Node, size: int) -> torch.Tensor:
    target: Any = node.target
    dim = _WEIGHTED.get(target)
    read = node.args[-1 if node.target is aten.addmm.default else 1] if dim is not None else None
    if not isinstance(read, fx.Node) or read.op != "get_attr":
        return torch.ones(size, dtype=torch.float64)
    weight = model.tensor(str(read.target))
    assert weight is not None
    assert dim is not None
    rest = [d for d in range(weight.ndim) if d != dim]
    along = weight.detach().double().square().sum(rest).cpu()
    return along if len(along) == size else torch.ones(size, dtype=torch.float64)


def taylor(model: Model, axes: Sequence[Axis], context: Context, pass_name: str) -> Scores:
    """First-order effect of removing a unit on the model's outputs (Molchanov et al. 2017, 2019).

    No labels are needed: the loss is a random projection of the outputs, each scaled to unit
    energy, and scores are the root mean square of its gradient with respect to unit gates, an
    unbiased estimate of the output change to first order (Hutchinson 1990).
    """
    batches = context.batches(pass_name)
    copied, gates = gated(model, [axis.id for axis in axes])
    generator = torch.Generator().manual_seed(context.seed)
    sums = {name: torch.zeros(gate.numel(), dtype=torch.float64) for name, gate in gates.items()}
    for done, (args, kwargs) in enumerate(batches):
        context.progress(done, len(batches), "Taylor saliency")
        outputs = [
            leaf
            for leaf in pytree.tree_leaves(copied(*args, **kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        # One projection per sample would be ideal; samples of a batch mix with random signs.
        loss = torch.zeros((), device=outputs[0].device)
        for output in outputs:
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
            scale = output.detach().float().square().sum().sqrt().clamp_min(1e-12)
            loss = loss + (output.float() * signs.to(output.device)).sum() / scale
        gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        for (name, _), gradient in zip(gates.items(), gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient.detach().double().square().cpu()
    context.progress(len(batches), len(batches), "Taylor saliency")
    return {name: (total / len(batches)).sqrt() for name, total in sums.items()}
