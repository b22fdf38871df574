"""The rewrite behind `Refit`: a layer takes the weight and bias that were solved for it.

The tensors wait in `model.payloads` under a digest of their contents, which the proposal names:
a proposal stays small text, and never meets other tensors than the ones it was made with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from esper import state
from esper.passbase import Rewrite
from esper.plan import Edit, Insert, Plan, Ref, Refusal, SetArg
from esper.propose import Refit
from esper.state import Create, Op, Replace, StateTransform
from esper_passes.affine import Affine, Unfit, affine

if TYPE_CHECKING:
    from esper.ir.model import Model

AGAIN = "run reconstruct again on this model: only flight records keep solved tensors"


def digest(payload: Mapping[str, torch.Tensor]) -> str:
    """Content hash of solved tensors by name."""
    text = "\n".join(
        f"{name} {t.dtype} {tuple(t.shape)} {state.digest(t)}"
        for name, t in sorted(payload.items())
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class RefitRewrite(Rewrite):
    """Replaces weight and bias; a layer that had no bias receives one if one was solved for."""

    type = "refit"

    def plan(self, model: Model, proposal: Refit) -> Plan | Refusal:
        name = proposal.node
        payload = model.payloads.get(proposal.digest)
        if payload is None:
            return Refusal(
                "missing-payload", f"no solved tensors are at hand for %{name}", name, AGAIN
            )
        if digest(payload) != proposal.digest:
            return Refusal(
                "changed-payload", f"the tensors solved for %{name} were changed since", name, AGAIN
            )
        layer = affine(model, model.nodes[name])
        if layer is None:
            return Refusal("no-weight", f"%{name} has no weight of its own", name)
        if isinstance(layer, Unfit):
            return Refusal(layer.code, layer.reason, name, layer.remedy)
        return _plan(model, proposal, layer, payload)


def _plan(
    model: Model, proposal: Refit, layer: Affine, payload: Mapping[str, torch.Tensor]
) -> Plan | Refusal:
    name = proposal.node
    present = model.tensor(layer.weight)
    assert present is not None
    weight, bias = payload["weight"], payload.get("bias")
    if weight.shape != present.shape:
        return Refusal(
            "stale-payload",
            f"%{name} has a weight {tuple(present.shape)}, solved was {tuple(weight.shape)}",
            name,
            AGAIN,
        )
    ops: dict[str, tuple[Op, ...]] = {layer.weight: (Replace(weight),)}
    edits: list[Edit] = []
    if bias is not None and layer.bias is not None:
        ops[layer.bias] = (Replace(bias),)
    elif bias is not None:
        if layer.new_bias is None:
            return Refusal("no-place", f"%{name} has no argument for a bias", name)
        created = _free_name(model, layer.weight)
        ops[created] = (Create(bias, trainable=present.requires_grad),)
        read = f"{name}_bias"
        while read in model.nodes:
            read += "_"
        node = model.nodes[name]
        module = str(node.meta.get("module", ""))
        edits.append(Insert(read, "get_attr", created, (), name, module=module))
        tail = node.args[layer.new_bias + 1 :]
        args = (*_encoded(node.args[: layer.new_bias]), Ref(read), *_encoded(tail))
        edits.append(SetArg(name, (), args))
    what = "weight and bias" if bias is not None else "weight"
    return Plan(
        proposal=proposal,
        summary=f"refit {what} of %{name} on calibration data",
        edits=tuple(edits),
        state=StateTransform(ops),
        tolerance="lossy",
        figures=dict(proposal.evidence),
    )


def _free_name(model: Model, weight: str) -> str:
    path = weight.rpartition(".")[0]
    taken = {name for name, _ in model.all_tensors()}
    name = f"{path}.bias" if path else "bias"
    while name in taken:
        name += "_"
    return name


def _encoded(args: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(Ref(a.name) if isinstance(a, torch.fx.Node) else a for a in args)
