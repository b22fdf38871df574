"""Which layers read what was cut, and what each of them should compute.

The model before any pass says what a layer gave. Where its output is added to a shortcut, the
error that the shortcut has gathered by then is part of the goal: the layer is asked for the sum
that the uncut model had, less the present shortcut (He, Zhang and Sun, Channel Pruning for
Accelerating Very Deep Neural Networks, 2017, multi-branch case).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from esper.ir.shapes import describe
from esper.ir.terms import kept_index
from esper_passes.affine import CONVOLUTIONS, Affine, Unfit, affine

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.terms import IntArray

aten = torch.ops.aten
Scope = Literal["cut", "all"]
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Goal:
    """What one layer should compute.

    Attributes:
        layer: the layer, in the present model.
        source: node of the uncut model whose value holds the goal.
        columns: outputs of the uncut layer that the present one still has.
        shortcut: node of the present model to be subtracted from that value, if any.
        norms: batch-norm nodes of the present model between the layer and the sum.
    """

    layer: Affine
    source: str
    columns: Tensor
    shortcut: str | None = None
    norms: tuple[str, ...] = ()


@dataclass
class Found:
    """Goals in graph order, layers that cannot be refit, and how many axes were cut."""

    goals: list[Goal] = field(default_factory=list)
    unfit: list[tuple[str, Unfit]] = field(default_factory=list)
    axes: int = 0


def find(baseline: Model, model: Model, scope: Scope, residual: bool) -> Found:
    """Layers that read a cut axis (or, with scope `all`, everything affine from there on).

    Args:
        baseline: the model before any pass.
        model: the present model; nodes and axes are matched by name and ID.
        scope: `cut` or `all`.
        residual: whether errors of shortcuts are part of the goal.
    """
    found = Found()
    keep, cut = _kept(baseline, model)
    found.axes = len(cut)
    old, new = baseline.nodes, model.nodes
    readers = {
        use.node
        for atom in cut
        for use in baseline.table.uses_of.get(atom, ())
        if use.node in new and use.kind == "zero"
    }
    if scope == "all":
        readers |= _downstream(old, new, readers | {n for n in new if _rewired(old, new, n)})
    order = {name: i for i, name in enumerate(new)}
    for name in sorted(readers, key=order.__getitem__):
        layer = affine(model, new[name])
        if isinstance(layer, Affine):
            goal = _goal(baseline, old, new, layer, keep, order if residual else None)
            if isinstance(goal, Goal):
                found.goals.append(goal)
                continue
            layer = goal
        if layer is not None:
            found.unfit.append((name, layer))
    return found


def _kept(baseline: Model, model: Model) -> tuple[dict[int, IntArray], set[int]]:
    """Positions that each atom of the uncut model still has, and the atoms that lost some."""
    keep: dict[int, IntArray] = {}
    cut: set[int] = set()
    present = model.anatomy.axes
    for name, axis in baseline.anatomy.axes.items():
        now = present.get(name)
        if now is None or now.unit_ids == axis.unit_ids:
            continue
        living = set(now.unit_ids)
        keep[axis.atom] = np.array(
            [i for i, unit in enumerate(axis.unit_ids) if unit in living], dtype=np.int64
        )
        if len(living & set(axis.unit_ids)) < axis.size:
            cut.add(axis.atom)
    return keep, cut


def _rewired(old: Mapping[str, fx.Node], new: Mapping[str, fx.Node], name: str) -> bool:
    """Whether a node reads other nodes than it did."""
    if name not in old:
        return False
    return [n.name for n in old[name].all_input_nodes] != [
        n.name for n in new[name].all_input_nodes
    ]


def _downstream(
    old: Mapping[str, fx.Node], new: Mapping[str, fx.Node], start: set[str]
) -> set[str]:
    """Nodes of both models that read, directly or not, from `start`; those included."""
    reached = set(start)
    for name, node in new.items():  # graph order
        if any(operand.name in reached for operand in node.all_input_nodes):
            reached.add(name)
    return {name for name in reached if name in old}


def _goal(
    baseline: Model,
    old: Mapping[str, fx.Node],
    new: Mapping[str, fx.Node],
    layer: Affine,
    keep: Mapping[int, IntArray],
    order: Mapping[str, int] | None,
) -> Goal | Unfit:
    name = layer.node
    unmatched = Unfit("unmatched-node", f"%{name} has no counterpart in the model before the cut")
    if name not in old or old[name].target is not new[name].target:
        return unmatched
    table = baseline.table
    dim = layer.channel
    terms = table.values[name]
    columns = torch.from_numpy(kept_index(terms[dim], keep, table.sizes))
    if len(columns) != new[name].meta["val"].shape[dim]:
        return Unfit(
            "unmatched-outputs", f"outputs of %{name} cannot be matched with those before the cut"
        )
    if order is not None:
        path = _to_sum(new, layer)
        if path is not None:
            total, other, norms = path
            known = total in old and old[total].target is new[total].target
            if known and order[other] < order[name]:
                return Goal(layer, total, columns, other, norms)
    return _plain(old, new, layer, columns)


def _plain(
    old: Mapping[str, fx.Node], new: Mapping[str, fx.Node], layer: Affine, columns: Tensor
) -> Goal:
    """The layer's own output; after a batch norm was folded in, what that norm gave."""
    users = list(old[layer.node].users)
    folded = (
        old[layer.node].target in CONVOLUTIONS
        and len(users) == 1
        and users[0].target is aten.batch_norm.default
        and users[0].name not in new
    )
    return Goal(layer, users[0].name if folded else layer.node, columns)


def _to_sum(new: Mapping[str, fx.Node], layer: Affine) -> tuple[str, str, tuple[str, ...]] | None:
    """The sum that a layer's output goes into, batch norms at most between: (sum, other, norms)."""
    node, norms = new[layer.node], []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target is aten.dropout.default or _same_rows(user, layer):
            pass  # dropout does nothing in evaluation
        elif user.target is aten.batch_norm.default and user.args[0] is node:
            norms.append(user.name)
        elif user.target is aten.add.Tensor and not user.kwargs:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if not isinstance(other, fx.Node) or other.op == "get_attr" or other is node:
                return None
            if describe(other.meta["val"]) != describe(user.meta["val"]):
                return None
            return user.name, other.name, tuple(norms)
        else:
            return None
        node = user
    return None


def _same_rows(node: fx.Node, layer: Affine) -> bool:
    """A view that keeps the last dimension, as between a flattened matmul and its sequence."""
    if node.target not in _VIEWS or layer.form == "convolution":
        return False
    before: Any = node.args[0]
    return bool(node.meta["val"].shape[-1] == before.meta["val"].shape[-1])


def norm_scale(model: Model, nodes: Mapping[str, fx.Node], goal: Goal) -> tuple[Tensor, Tensor]:
    """What the goal's batch norms do to each output: (scale, offset), float64, outputs each."""
    count = len(goal.columns)
    scale, offset = torch.ones(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for name in goal.norms:
        args: Any = nodes[name].args
        weight, bias, mean, variance = (
            None if read is None else _tensor(model, read) for read in args[1:5]
        )
        assert mean is not None
        assert variance is not None
        factor = (variance + args[7]).rsqrt()
        factor = factor if weight is None else factor * weight
        scale, offset = scale * factor, (offset - mean) * factor
        offset = offset if bias is None else offset + bias
    return scale, offset


def _tensor(model: Model, read: fx.Node) -> Tensor:
    tensor = model.tensor(str(read.target))
    assert tensor is not None
    return tensor.detach().to("cpu", torch.float64)
