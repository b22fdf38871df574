"""The rewrites behind `LowRankSwap` and `MergeFactors`: one layer as two, and back.

The factors come from a singular value decomposition, balanced so that both have the same singular
values, which keeps gradients of both at one scale. With the second moment M of the inputs they are
the best of their rank for outputs on such inputs: W M^(1/2) is decomposed and M^(-1/2) taken back
(Wang et al., SVD-LLM, arXiv:2403.07378, with a symmetric root in place of the Cholesky factor;
compare ASVD, Yuan et al., arXiv:2312.05821, which scales by the diagonal only).

Optimizer state of both factors starts anew. Their gradients are B^T G and G A^T of the old gradient
G, so first moments could be carried over, but second moments could not: squares do not commute with
the rotation into the singular basis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, SetArg
from esper.propose import LowRankSwap, MergeFactors
from esper.state import Create, Drop, Op, StateTransform
from esper_passes.editing import Inserter, encoded, layer_of, weight_of, weight_read
from esper_passes.liveness import dying, erase, fresh
from esper_passes.refit import digest

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.affine import Affine

aten = torch.ops.aten
_RIDGE = 1e-6  # added to the second moment, relative to its mean diagonal
_EXACT = 64  # in units of rounding: what such a share of the largest singular value leaves is noise


@dataclass(frozen=True)
class Spectrum:
    """A matrix (outputs, inputs) as a sum of rank-one terms in order of weight, float64.

    Attributes:
        outputs: (outputs, n) left singular vectors.
        values: (n) singular values, descending.
        inputs: (n, inputs) right singular vectors, unwhitened.
    """

    outputs: Tensor
    values: Tensor
    inputs: Tensor

    def rank(self, energy: float) -> int:
        """The least rank that holds this share of the sum of squares."""
        share = self.values.square().cumsum(0) / self.values.square().sum().clamp_min(1e-300)
        return min(int((share < energy).sum()) + 1, len(self.values))

    def lost(self, rank: int) -> float:
        """Relative error of that rank: of the weight, or of the outputs if it was whitened."""
        total = float(self.values.square().sum())
        return float(self.values[rank:].square().sum() / total) ** 0.5 if total else 0.0

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Balanced (rank, inputs) and (outputs, rank), whose product is the matrix."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.inputs[:rank], self.outputs[:, :rank] * root


def spectrum(matrix: Tensor, moment: Tensor | None = None) -> Spectrum:
    """Decompose (outputs, inputs), for inputs of that second moment (inputs, inputs) if given."""
    matrix = matrix.double()
    if moment is None:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return Spectrum(u, s, v)
    values, vectors = torch.linalg.eigh(moment.double())
    ridge = _RIDGE * float(values.clamp_min(0).mean()) or 1.0
    root = (values.clamp_min(0) + ridge).sqrt()
    u, s, v = torch.linalg.svd((matrix @ vectors) * root, full_matrices=False)
    return Spectrum(u, s, (v / root) @ vectors.T)


def most(outputs: int, inputs: int) -> int:
    """The largest rank at which two factors have fewer elements than the matrix."""
    return (outputs * inputs - 1) // (outputs + inputs)


class LowRankSwapRewrite(Rewrite):
    """The layer's node keeps its name and reads the narrow value from now on."""

    type = "low-rank-swap"

    def plan(self, model: Model, proposal: LowRankSwap) -> Plan | Refusal:
        """Refuses ranks that save nothing (`no-shrink`) and moments that are not at hand."""
        name, node = proposal.node, model.nodes[proposal.node]
        layer = layer_of(model, name)
        if isinstance(layer, Refusal):
            return layer
        weight = weight_of(model, layer)
        matrix = layer.matrix(weight)
        outputs, inputs = matrix.shape
        moment: Tensor | None = None
        if proposal.moment:
            payload = _moment(model, proposal, inputs)
            if isinstance(payload, Refusal):
                return payload
            moment = payload
        found = spectrum(matrix, moment)
        rank = proposal.rank or found.rank(proposal.energy or 1.0)
        limit = most(outputs, inputs)
        if rank > limit:
            return Refusal(
                "no-shrink",
                f"rank {rank} of %{name} ({outputs} x {inputs}) has no fewer parameters",
                name,
                f"ask for a rank of at most {limit}" if limit else "leave a layer this small",
            )
        noise = _EXACT * torch.finfo(weight.dtype).eps
        exact = bool((found.values[rank:] <= noise * found.values[0]).all())
        edits, ops = _split(model, node, layer, weight, found.factors(rank))
        after = rank * (outputs + inputs)
        return Plan(
            proposal=proposal,
            summary=f"%{name} ({outputs} x {inputs}) as two layers of rank {rank}",
            edits=edits,
            state=StateTransform(ops),
            tolerance="reassociates" if exact else "lossy",
            figures={
                "rank": rank,
                "error": found.lost(rank),
                "parameters_removed": outputs * inputs - after,
            },
        )


def _moment(model: Model, proposal: LowRankSwap, inputs: int) -> Tensor | Refusal:
    again = "gather moments again (low-rank with data): only flight records keep them"
    payload = model.payloads.get(proposal.moment)
    if payload is None:
        code, what = "missing-payload", "is not at hand"
    elif digest(payload) != proposal.moment:
        code, what = "changed-payload", "was changed since"
    elif payload["moment"].shape != (inputs, inputs):
        code, what = "stale-payload", f"is not one of {inputs} inputs"
    else:
        return payload["moment"]
    reason = f"the second moment of what %{proposal.node} reads {what}"
    return Refusal(code, reason, proposal.node, again)


def _split(
    model: Model, node: fx.Node, layer: Affine, weight: Tensor, factors: tuple[Tensor, Tensor]
) -> tuple[tuple[Edit, ...], dict[str, tuple[Op, ...]]]:
    down, up = (factor.to(weight.dtype) for factor in factors)
    if layer.form == "columns":
        down, up = down.T.contiguous(), up.T.contiguous()
    elif layer.form == "convolution":
        down = down.reshape(-1, *weight.shape[1:])
        up = up.reshape(*up.shape, *[1] * (weight.ndim - 2))
    taken = {name for name, _ in model.all_tensors()}
    names = [fresh(taken, base) for base in _names(layer.weight)]
    insert = Inserter(model, node)
    reads = [insert.read(name, f"{node.name}_{which}") for name, which in _both(names)]
    at = layer.operand
    args = encoded(node.args)
    if layer.form == "convolution":
        narrow = insert.call(node.target, (args[0], reads[0], None, *args[3:]), f"{node.name}_low")
        new = (narrow, reads[1], *args[2:3])
    else:
        target = aten.mm.default if node.target is aten.addmm.default else node.target
        narrow = insert.call(target, (args[at], reads[0]), f"{node.name}_low")
        new = encoded(node.args, {at: narrow, at + 1: reads[1]})
    read = weight_read(node, layer)
    present = model.tensor(layer.weight)
    assert present is not None
    trains = present.requires_grad
    ops: dict[str, tuple[Op, ...]] = {
        name: (Create(value.contiguous(), trains),)
        for name, value in zip(names, (down, up), strict=True)
    }
    ops[layer.weight] = (Drop(),)
    return (*insert.edits, SetArg(node.name, (), new), *erase([read])), ops


def _both(names: list[str]) -> list[tuple[str, str]]:
    return list(zip(names, ("down", "up"), strict=True))


def _names(weight: str) -> tuple[str, str]:
    """`fc.weight` -> `fc.down.weight`, `fc.up.weight`; `proj` -> `proj_down`, `proj_up`."""
    path, dot, leaf = weight.rpartition(".")
    if leaf == "weight":
        return f"{path}{dot}down.weight", f"{path}{dot}up.weight"
    return f"{weight}_down", f"{weight}_up"


def _whole(down: str) -> str:
    """The name that a weight had before it was split; its own where it was not."""
    if down.endswith("down.weight"):
        return down.removesuffix("down.weight") + "weight"
    return down.removesuffix("_down")


# -- back ------------------------------------------------------------------------------------------


def pairs(model: Model) -> dict[str, str]:
    """Layers without a bias that one other layer alone reads: first node -> second node."""
    found: dict[str, str] = {}
    for node in model.graph.nodes:
        if node.op == "call_function" and len(node.users) == 1:
            second = next(iter(node.users))
            if second.op == "call_function" and not isinstance(_pair(model, node, second), Refusal):
                found[node.name] = second.name
    return found


class MergeFactorsRewrite(Rewrite):
    """The second node computes both from now on; optimizer state of the weight starts anew."""

    type = "merge-factors"

    def plan(self, model: Model, proposal: MergeFactors) -> Plan | Refusal:
        """Refuses what are no two layers in a row (`not-a-pair`) and a bias between them."""
        nodes = model.nodes
        first, second = nodes[proposal.first], nodes[proposal.second]
        layers = _pair(model, first, second)
        if isinstance(layers, Refusal):
            return layers
        one, two = layers
        inner, outer = weight_of(model, one), weight_of(model, two)
        product = two.matrix(outer).double() @ one.matrix(inner).double()
        shape = _shape(one, inner, outer)
        like = inner.new_empty(shape)
        value = one.tensor(product, like)
        gone = dying(model, [first, weight_read(second, two)], keep=_operand(first, one))
        lost = {one.weight, two.weight}
        taken = {name for name, _ in model.all_tensors()} - lost
        name = fresh(taken | lost, _whole(one.weight))
        insert = Inserter(model, second)
        read = insert.read(name, f"{second.name}_weight")
        args = encoded(first.args)
        if one.form == "convolution":
            bias = encoded(second.args)[2:3] or (None,)
            new = (args[0], read, *bias, *args[3:])
        else:
            at = two.operand
            new = encoded(second.args, {at: args[one.operand], at + 1: read})
        trains = any(t is not None and t.requires_grad for t in map(model.tensor, sorted(lost)))
        ops: dict[str, tuple[Op, ...]] = {name: (Create(value, trains),)}
        ops |= {gone_name: (Drop(),) for gone_name in lost}
        return Plan(
            proposal=proposal,
            summary=f"%{first.name} and %{second.name} as one layer",
            edits=(*insert.edits, SetArg(second.name, (), new), *erase(gone)),
            state=StateTransform(ops),
            tolerance="reassociates",
            figures={"parameters_removed": inner.numel() + outer.numel() - value.numel()},
        )


def _pair(model: Model, first: fx.Node, second: fx.Node) -> tuple[Affine, Affine] | Refusal:
    def refuse(why: str) -> Refusal:
        return Refusal(
            "not-a-pair",
            f"%{first.name} and %{second.name} are no two layers in a row: {why}",
            second.name,
            "name a layer and the only one that reads it",
        )

    layers: list[Affine] = []
    for node in (first, second):
        layer = layer_of(model, node.name)
        if isinstance(layer, Refusal):
            return layer
        layers.append(layer)
    one, two = layers
    if _operand(second, two) is not first or list(first.users) != [second]:
        return refuse("the second must read the first, and nothing else may")
    if one.bias is not None:
        return Refusal("biased-factor", f"%{first.name} adds a bias", first.name, "fold it first")
    if one.form != two.form:
        return refuse("their weights lie differently")
    if one.form == "convolution" and (
        first.target is not second.target
        or weight_of(model, two)[0, 0].numel() != 1
        or any(s != 1 for s in two.stride)
        or any(side for sides in two.padding for side in sides)
    ):
        return refuse("the second must be a convolution of size and stride 1 without padding")
    return one, two


def _operand(node: fx.Node, layer: Affine) -> fx.Node:
    operand = node.args[layer.operand]
    assert isinstance(operand, fx.Node)
    return operand


def _shape(one: Affine, inner: Tensor, outer: Tensor) -> tuple[int, ...]:
    if one.form == "columns":
        return inner.shape[0], outer.shape[1]
    return outer.shape[0], *inner.shape[1:]


def moment_digest(moment: Tensor) -> tuple[str, Mapping[str, Any]]:
    """A second moment as a payload: its digest and what belongs into `Model.payloads`."""
    payload = {"moment": moment}
    return digest(payload), payload
