"""Folding batch norm into the layer before it (Jacob et al. 2018, section 3.2, equation 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Edit, Insert, Plan, Ref, Refusal, ReplaceUses, SetArg
from esper.propose import FuseConvBN as Proposal
from esper.state import Create, Op, Replace, StateTransform
from esper_passes.liveness import drops, dying, erase, fresh, unread

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_PLAIN = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.linear.default,
)
# A transposed convolution keeps its weight as [in, out / groups, ...]; groups is argument 6.
_TRANSPOSED = (
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
)
_GROUPS = 6


@dataclass(frozen=True)
class FuseConvBN(Pass):
    """Fold evaluation-mode batch norms into the convolution or linear layer before them."""

    name: ClassVar[str] = "fuse-conv-bn"

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each batch norm right after a layer; a remark where there is none."""
        pairs = [
            (node.args[0].name, node.name)
            for node in model.graph.nodes
            if node.target is aten.batch_norm.default
            and isinstance(node.args[0], fx.Node)
            and node.args[0].target in (*_PLAIN, *_TRANSPOSED)
        ]
        if not pairs:
            yield Remark(
                "analysis",
                "no-conv-bn",
                "no batch norm follows a convolution or linear layer directly",
            )
        for convolution, batch_norm in pairs:
            yield Proposal(convolution=convolution, batch_norm=batch_norm, proposer=self.name)


class FuseConvBNRewrite(Rewrite):
    """New weight W * s and bias (b - mean) * s + beta with s = gamma / sqrt(var + eps).

    Computed in float64 and cast back. Afterwards the layer no longer gathers batch statistics
    in training: the fused model is meant for inference or fine-tuning with fixed statistics.
    """

    type: ClassVar[str] = "fuse-conv-bn"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses what is not a layer directly followed by an evaluation-mode batch norm."""
        nodes = model.nodes
        layer, norm = nodes[proposal.convolution], nodes[proposal.batch_norm]
        refusal = _mismatch(layer, norm) or _unsteady(norm) or _shared(model, layer, norm)
        if refusal is not None:
            return refusal
        names = model.canonical_names()
        weight_name, bias_name = _operand(layer, 1, "weight"), _operand(layer, 2, "bias")
        assert weight_name is not None
        weight = _tensor(model, weight_name)
        assert weight is not None
        bias = _tensor(model, bias_name)
        new_weight, new_bias = _fused(model, layer, norm, weight, bias)
        ops: dict[str, tuple[Op, ...]] = {names[weight_name]: (Replace(new_weight),)}
        edits: list[Edit] = []
        if bias_name is not None:
            ops[names[bias_name]] = (Replace(new_bias),)
        else:
            owner = weight_name.rpartition(".")[0]
            name = fresh(names, f"{owner}.bias" if owner else "bias")
            read = fresh(nodes, f"{layer.name}_bias")
            ops[name] = (Create(new_bias, trainable=weight.requires_grad),)
            module = str(layer.meta.get("module") or "")
            edits.append(Insert(read, "get_attr", name, (), layer.name, module=module))
            edits.append(_set_bias(layer, read))
        edits.append(ReplaceUses(norm.name, layer.name))
        gone = dying(model, [norm], keep=layer)
        return Plan(
            proposal=proposal,
            summary=f"fold %{norm.name} into %{layer.name}",
            edits=(*edits, *erase(gone)),
            state=StateTransform({**ops, **drops(unread(model, gone))}),
            tolerance="reassociates",
            figures={"channels": new_bias.numel(), "bias_added": bias_name is None},
        )


def _mismatch(layer: fx.Node, norm: fx.Node) -> Refusal | None:
    if norm.target is not aten.batch_norm.default or norm.args[0] is not layer:
        return Refusal(
            "not-a-pair",
            f"%{norm.name} is no batch norm of %{layer.name}",
            norm.name,
            "name a layer and the batch norm that reads it",
        )
    if layer.target not in (*_PLAIN, *_TRANSPOSED):
        return Refusal(
            "not-linear",
            f"%{layer.name} is {layer.target}, which takes no batch norm in",
            layer.name,
            "only convolutions and linear layers can be fused",
        )
    ndim = layer.meta["val"].ndim
    expected = 2 if layer.target is aten.linear.default else _weight(layer).meta["val"].ndim
    if ndim != expected:
        return Refusal(
            "other-channels",
            f"%{norm.name} normalises dimension 1, which is not the channels of %{layer.name}",
            norm.name,
            "channels must be dimension 1 of the layer's output",
        )
    return None


def _unsteady(norm: fx.Node) -> Refusal | None:
    if norm.args[3] is None or norm.args[4] is None:
        return Refusal(
            "no-statistics",
            f"%{norm.name} keeps no running statistics",
            norm.name,
            "train it with track_running_stats=True",
        )
    if norm.args[5]:
        return Refusal(
            "training-mode",
            f"%{norm.name} normalises with the statistics of the batch",
            norm.name,
            "call model.eval() first",
        )
    return None


def _shared(model: Model, layer: fx.Node, norm: fx.Node) -> Refusal | None:
    if len(layer.users) > 1:
        other = next(user for user in layer.users if user is not norm)
        return Refusal(
            "shared-value",
            f"%{layer.name} is also read by %{other.name}, before normalisation",
            layer.name,
            "nothing can be fused while another node needs the unnormalised value",
        )
    if norm.all_input_nodes.count(layer) != 1 or layer in _reads(norm):
        return Refusal("shared-value", f"%{norm.name} reads %{layer.name} twice", norm.name)
    names = model.canonical_names()
    for owner, reads in ((layer, _operands(layer)), (norm, _reads(norm))):
        for read in reads:
            if read.op != "get_attr" or str(read.target) not in names:
                return Refusal(
                    "computed-parameter",
                    f"%{read.name} of %{owner.name} is computed, not stored",
                    read.name,
                    "run fold-constants first, or remove the parametrisation",
                )
            refusal = _tied(model, names, read, owner)
            if refusal is not None:
                return refusal
    return None


def _tied(model: Model, names: dict[str, str], read: fx.Node, owner: fx.Node) -> Refusal | None:
    name = names[str(read.target)]
    for node in model.graph.find_nodes(op="get_attr"):
        if names.get(str(node.target)) != name:
            continue
        for user in node.users:
            if user is not owner:
                return Refusal(
                    "tied-parameter",
                    f"{name} is also read by %{user.name}",
                    read.name,
                    "untie the parameter first (give each layer its own copy)",
                )
    return None


def _weight(layer: fx.Node) -> fx.Node:
    node = layer.args[1] if len(layer.args) > 1 else layer.kwargs["weight"]
    assert isinstance(node, fx.Node)
    return node


def _operands(layer: fx.Node) -> list[fx.Node]:
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return [_weight(layer), *([bias] if isinstance(bias, fx.Node) else [])]


def _reads(norm: fx.Node) -> list[fx.Node]:
    return [read for read in norm.args[1:5] if isinstance(read, fx.Node)]


def _operand(layer: fx.Node, position: int, name: str) -> str | None:
    value = layer.args[position] if len(layer.args) > position else layer.kwargs.get(name)
    return str(value.target) if isinstance(value, fx.Node) else None


def _set_bias(layer: fx.Node, read: str) -> SetArg:
    if len(layer.args) > 2:
        return SetArg(layer.name, (2,), Ref(read))
    if "bias" in layer.kwargs:
        return SetArg(layer.name, ("bias",), Ref(read))
    args = tuple(Ref(arg.name) if isinstance(arg, fx.Node) else arg for arg in layer.args)
    return SetArg(layer.name, (), (*args, Ref(read)))


def _tensor(model: Model, name: str | None) -> torch.Tensor | None:
    return None if name is None else model.tensor(name)


def _fused(
    model: Model,
    layer: fx.Node,
    norm: fx.Node,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    def read(node: Any) -> torch.Tensor | None:
        tensor = model.tensor(str(node.target)) if isinstance(node, fx.Node) else None
        return None if tensor is None else tensor.detach().double()

    gamma, beta, mean, variance = (read(node) for node in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    epsilon = norm.args[7]
    assert isinstance(epsilon, float)
    scale = torch.rsqrt(variance + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean if bias is None else bias.detach().double() - mean
    shift = shift * scale
    if beta is not None:
        shift = shift + beta
    wide = weight.detach().double()
    if layer.target in _TRANSPOSED:
        groups = _groups(layer)
        split = wide.reshape(groups, -1, *wide.shape[1:])
        factor = scale.reshape(groups, 1, -1, *[1] * (wide.ndim - 2))
        wide = (split * factor).flatten(0, 1)
    else:
        wide = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
    return wide.to(weight.dtype), shift.to(weight.dtype if bias is None else bias.dtype)


def _groups(layer: fx.Node) -> int:
    value = layer.args[_GROUPS] if len(layer.args) > _GROUPS else layer.kwargs.get("groups", 1)
    assert isinstance(value, int)
    return value
