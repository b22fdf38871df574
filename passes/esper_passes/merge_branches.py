"""The rewrite behind `MergeBranches`: two operands of a sum become one.

What is linear in one value adds up exactly: convolutions, linear layers, the value itself, and a
batch norm of it in evaluation (Ding et al., RepVGG, arXiv:2101.03697). The gradient of the sum of
two kernels is that of each, so optimizer state of the kernel that stays goes on as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, ReplaceUses, SetArg, UnitGrowth
from esper.propose import MergeBranches
from esper.state import Create, Grow, Move, Op, Patch, Replace, StateTransform
from esper_passes.affine import Affine, affine
from esper_passes.editing import Inserter, encoded, weight_of
from esper_passes.liveness import drops, dying, erase, fresh, unread
from esper_passes.parallel import (
    alike,
    diagonal,
    pair_of_chains,
    placed,
    sum_of,
    two_layers,
)
from esper_passes.refit import digest

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


class _Draft:
    """Operations on the branch that stays."""

    def __init__(self, model: Model, proposal: MergeBranches) -> None:
        self.model, self.proposal = model, proposal
        self.ops: dict[str, tuple[Op, ...]] = {}
        self.edits: list[Edit] = []
        self.growths: tuple[UnitGrowth, ...] = ()

    def patch(self, name: str, value: Tensor) -> None:
        """A new value whose gradient is that of the old one: optimizer state stays."""
        like = self.model.tensor(name)
        assert like is not None
        self.ops[name] = (Patch(0, tuple(range(len(like))), value.to(like.dtype)),)

    def bias(self, node: fx.Node, layer: Affine, more: Tensor | None) -> Refusal | None:
        """Add to the layer's bias; one without a bias receives it."""
        if more is None:
            return None
        model, own = self.model, layer.bias
        if own is not None:
            present = model.tensor(own)
            assert present is not None
            self.patch(own, present.detach().double() + more)
            return None
        if layer.new_bias is None:
            return Refusal("no-place", f"%{node.name} has no argument for a bias", node.name)
        weight = model.tensor(layer.weight)
        assert weight is not None
        path = layer.weight.rpartition(".")[0]
        base = f"{path}.bias" if path else "bias"
        name = fresh([name for name, _ in model.all_tensors()], base)
        self.ops[name] = (Create(more.to(weight.dtype), trainable=weight.requires_grad),)
        insert = Inserter(model, node)
        read = insert.read(name, f"{node.name}_bias")
        args = (*encoded(node.args[:2]), read, *encoded(node.args[3:]))
        self.edits += [*insert.edits, SetArg(node.name, (), args)]
        return None

    def plan(self, total: fx.Node, stays: fx.Node, what: str) -> Plan:
        """The other branch and the sum go."""
        model = self.model
        gone = dying(model, [total], keep=stays)
        lost = unread(model, gone)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        removed = sum(sizes.get(name, 0) for name in lost)
        return Plan(
            proposal=self.proposal,
            summary=f"merge %{self.proposal.a} and %{self.proposal.b}: {what}",
            edits=(*self.edits, ReplaceUses(total.name, stays.name), *erase(gone)),
            state=StateTransform({**self.ops, **drops(lost)}),
            growths=self.growths,
            tolerance=self.proposal.tolerance,
            figures={"parameters_removed": removed - self._grown(), "nodes_removed": len(gone)},
        )

    def _grown(self) -> int:
        return sum(
            op.fill.numel() for ops in self.ops.values() for op in ops if isinstance(op, Grow)
        )


class MergeBranchesRewrite(Rewrite):
    """One class, three ways of merging (`MergeBranches.how`)."""

    type = "merge-branches"

    def plan(self, model: Model, proposal: MergeBranches) -> Plan | Refusal:
        """Refuses what is no sum (`no-sum`) and branches that do not fit (`unlike-branches`)."""
        nodes = model.nodes
        a, b = nodes[proposal.a], nodes[proposal.b]
        total = sum_of(a, b)
        if isinstance(total, Refusal):
            return total
        ways = {"add": _add, "concatenate": _concatenate, "average": _average}
        return ways[proposal.how](_Draft(model, proposal), total, a, b)


def _unlike(draft: _Draft, why: str, remedy: str = "") -> Refusal:
    a, b = draft.proposal.a, draft.proposal.b
    return Refusal("unlike-branches", f"%{a} and %{b} do not merge so: {why}", b, remedy)


# -- add -------------------------------------------------------------------------------------------


def _add(draft: _Draft, total: fx.Node, a: fx.Node, b: fx.Node) -> Plan | Refusal:
    model = draft.model
    if set(a.users) != {total} and set(b.users) != {total}:
        return _unlike(draft, "both values are also read elsewhere")
    candidates = [
        (node, layer, other)
        for node, other in ((a, b), (b, a))
        if isinstance(layer := affine(model, node, grouped=True), Affine)
        and set(node.users) == {total}
    ]
    if not candidates:
        return _unlike(
            draft, "neither is a layer with a weight of its own that the sum alone reads"
        )
    # The larger window holds the smaller one; what has or takes a bias can take the other's.
    candidates.sort(
        key=lambda c: (
            -weight_of(model, c[1]).numel(),
            c[1].bias is None and c[1].new_bias is None,
        )
    )
    why = ""
    for stays, layer, other in candidates:
        found = _kernel(model, stays, layer, other, total)
        if isinstance(found, str):
            why = why or found
            continue
        weight, bias = found
        draft.patch(layer.weight, weight_of(model, layer).double() + weight)
        refusal = draft.bias(stays, layer, bias)
        return refusal or draft.plan(total, stays, "their kernels add up")
    return _unlike(draft, why, "merge two branches that are linear in one value")


def _kernel(
    model: Model, stays: fx.Node, layer: Affine, other: fx.Node, total: fx.Node
) -> tuple[Tensor, Tensor | None] | str:
    """Weight (laid out as the layer's) and bias of the other operand, float64; or why not."""
    source = stays.args[layer.operand]
    assert isinstance(source, fx.Node)
    channels = layer.matrix(weight_of(model, layer)).shape[0]
    ones = torch.ones(channels, dtype=torch.float64)
    if other is source:
        unit = diagonal(model, layer, ones.to(weight_of(model, layer).device))
        return unit if isinstance(unit, str) else (unit, None)
    if set(other.users) != {total}:
        return f"%{other.name} is also read elsewhere"
    second = affine(model, other, grouped=True)
    if isinstance(second, Affine) and other.args[second.operand] is source:
        weight = placed(model, second, layer)
        if isinstance(weight, str):
            return weight
        bias = None if second.bias is None else model.tensor(second.bias)
        return weight, None if bias is None else bias.detach().double()
    if other.target is aten.batch_norm.default and other.args[0] is source:
        return _norm(model, layer, other)
    return f"%{other.name} is not linear in what %{stays.name} reads"


def _norm(model: Model, layer: Affine, norm: fx.Node) -> tuple[Tensor, Tensor | None] | str:
    args: Any = norm.args
    if args[5] or args[3] is None or args[4] is None:
        return f"%{norm.name} normalises with the statistics of the batch"
    if layer.form != "convolution" and norm.meta["val"].ndim != 2:
        return f"%{norm.name} normalises another dimension"
    read = [None if r is None else model.tensor(str(r.target)) for r in args[1:5]]
    gamma, beta, mean, variance = (None if t is None else t.detach().double() for t in read)
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance + args[7])
    scale = scale if gamma is None else scale * gamma
    weight = diagonal(model, layer, scale)
    if isinstance(weight, str):
        return weight
    shift = -mean * scale
    return weight, shift if beta is None else shift + beta


# -- concatenate -----------------------------------------------------------------------------------


def _concatenate(draft: _Draft, total: fx.Node, a: fx.Node, b: fx.Node) -> Plan | Refusal:
    model = draft.model
    chains = pair_of_chains(a, b)
    if chains is None or any(set(end.users) != {total} for end in (a, b)):
        return _unlike(draft, "they are no chains from one value to the sum")
    one, two = (two_layers(model, branch) for branch in chains)
    if one is None or two is None:
        return _unlike(draft, "each must be a layer, element-wise functions, and a layer")
    why = _same_steps(draft, chains, one, two)
    if why:
        return _unlike(draft, why)
    inner, outer = zip(one, two, strict=True)
    for (mine, theirs), side in ((inner, 0), (outer, 1)):
        weight, more = weight_of(model, mine), weight_of(model, theirs)
        dim = side if mine.form != "columns" else 1 - side
        draft.ops[mine.weight] = (_grow(weight, more, dim),)
    if inner[0].bias is not None and inner[1].bias is not None:
        first, second = model.tensor(inner[0].bias), model.tensor(inner[1].bias)
        assert first is not None
        assert second is not None
        draft.ops[inner[0].bias] = (_grow(first.detach(), second.detach(), 0),)
    bias = None if outer[1].bias is None else model.tensor(outer[1].bias)
    refusal = draft.bias(a, outer[0], None if bias is None else bias.detach().double())
    if refusal is not None:
        return refusal
    place = (inner[0].weight, 0 if inner[0].form != "columns" else 1)
    count = inner[1].matrix(weight_of(model, inner[1])).shape[0]
    width = inner[0].matrix(weight_of(model, inner[0])).shape[0]
    draft.growths = tuple(
        UnitGrowth(axis.id, count)
        for axis in model.anatomy.axes.values()
        if place in axis.members and axis.size == width
    )
    return draft.plan(total, a, f"one hidden layer of {width} + {count} units")


def _same_steps(
    draft: _Draft,
    chains: tuple[Any, Any],
    one: tuple[Affine, Affine],
    two: tuple[Affine, Affine],
) -> str:
    between = [[(n.target, n.args[1:], n.kwargs) for n in c.nodes[1:-1]] for c in chains]
    if between[0] != between[1]:
        return "the functions between their layers differ"
    for mine, theirs in zip(one, two, strict=True):
        shapes = [weight_of(draft.model, layer).shape[2:] for layer in (mine, theirs)]
        same = (mine.form, mine.stride, mine.padding, mine.dilation)
        if shapes[0] != shapes[1] or same != (
            theirs.form,
            theirs.stride,
            theirs.padding,
            theirs.dilation,
        ):
            return f"%{mine.node} and %{theirs.node} differ in form or window"
    if (one[0].bias is None) != (two[0].bias is None):
        return "one first layer has a bias, the other has none"
    return ""


def _grow(old: Tensor, new: Tensor, dim: int) -> Move:
    return Grow(dim, tuple(range(old.shape[dim])), new)


# -- average ---------------------------------------------------------------------------------------


def _average(draft: _Draft, total: fx.Node, a: fx.Node, b: fx.Node) -> Plan | Refusal:
    model, again = draft.model, "run merge-branches again on this model"
    chains = pair_of_chains(a, b)
    if chains is None or any(set(end.users) != {total} for end in (a, b)):
        return _unlike(draft, "they are no chains from one value to the sum")
    why = alike(model, *chains)
    if why:
        return _unlike(draft, why)
    payload = model.payloads.get(draft.proposal.digest)
    if payload is None:
        return Refusal("missing-payload", "no fitted tensors are at hand", b.name, again)
    if digest(payload) != draft.proposal.digest:
        return Refusal("changed-payload", "the fitted tensors were changed since", b.name, again)
    names = model.canonical_names()
    for name, value in payload.items():
        present = model.tensor(name)
        if present is None or present.shape != value.shape:
            return Refusal("stale-payload", f"{name} is no tensor of that shape", b.name, again)
        if names[name] != name or len(model.readers().get(name, ())) != 1:
            return Refusal("shared-tensor", f"{name} serves other places too", a.name, again)
        draft.ops[name] = (Replace(value.to(present.dtype)),)
    return draft.plan(total, a, "one of them, fitted to the sum of both")
