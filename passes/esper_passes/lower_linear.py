"""The rewrite behind `LowerLinear`: a weight is packed and its layer calls a kernel.

Packing moves elements and computes nothing, so gradients, optimizer moments and averages move
along, and unpacking gives the same weight again, bit for bit. Whatever is dropped is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.passbase import Rewrite
from esper.plan import Plan, Ref, Refusal, Retarget
from esper.propose import LowerLinear
from esper.propose.lowering import OF_RUNS, LinearKernel
from esper.state import StateTransform
from esper_passes.kept import Kept, Runs, TwoOfFour, kept_runs, kept_two_of_four
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lowerable import Lowerable, lowerable, rounded
from esper_passes.packed_weight import Packer

if TYPE_CHECKING:
    from esper.ir.model import Model


_FLOATING, _INT8 = "floating", "int8 by quantize{mode=weight-int8}"
_ROUNDED = "int8 by quantize{mode=dynamic-int8}"
_READS: dict[LinearKernel, str] = {
    "vnm_linear": _FLOATING,
    "sparse24_linear": _FLOATING,
    "int8_linear": _INT8,
    "vnm_int8_linear": _INT8,
    "vnm_dynamic_linear": _ROUNDED,
}


class LowerLinearRewrite(Rewrite):
    """Node and weight keep their names, and a parameter stays the same object."""

    type = "lower-linear"

    def plan(self, model: Model, proposal: LowerLinear) -> Plan | Refusal:
        """Refuses what is no linear layer with a weight of its own, and weights without zeros."""
        return _planned(model, proposal, None)

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """A copy keeps the runs of the live model, and must be zero where that is, too."""
        assert isinstance(plan.proposal, LowerLinear)
        return _planned(model, plan.proposal, plan)


def _planned(model: Model, proposal: LowerLinear, live: Plan | None) -> Plan | Refusal:
    layer = _layer(model, proposal)
    if isinstance(layer, Refusal):
        return layer
    kept: Kept | Refusal | None = None
    if proposal.kernel in OF_RUNS:
        kept = kept_runs(model, layer, proposal.rows, proposal.run, live)
    elif proposal.kernel == "sparse24_linear":
        kept = kept_two_of_four(model, layer, live)
    return kept if isinstance(kept, Refusal) else _plan(model, proposal, layer, kept)


def _layer(model: Model, proposal: LowerLinear) -> Lowerable | Refusal:
    name = proposal.node
    layer = lowerable(model, model.nodes[name]) or rounded(model, model.nodes[name])
    if layer is None:
        return Refusal(
            "no-weight",
            f"%{name} is no linear layer with a weight of its own",
            name,
            "name a linear layer",
        )
    if isinstance(layer, Refusal):
        return layer
    if _stored(layer) != _READS[proposal.kernel]:
        return Refusal(
            "other-weight",
            f"{layer.weight} is {_stored(layer)}, which {proposal.kernel} does not read",
            name,
            f"it reads what is {_READS[proposal.kernel]}",
        )
    device = layer.read.meta["val"].device.type
    if proposal.kernel == "vnm_dynamic_linear" and device != "cpu":
        return Refusal(
            "no-kernel-there",
            f"{layer.weight} is on {device}, and {proposal.kernel} is a kernel of CPUs",
            name,
            "quantise it with mode=weight-int8 for vnm_int8_linear",
        )
    return layer


def _stored(layer: Lowerable) -> str:
    if layer.scale is None:
        return _FLOATING
    return _ROUNDED if layer.rounding else _INT8


def _plan(model: Model, proposal: LowerLinear, layer: Lowerable, kept: Kept | None) -> Plan:
    _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the dense weight
    node, packer = layer.node, Packer(model, layer.node, proposal.freeze)
    reads = [read for read in packer.add(layer, kept) if read is not None]
    bias = None if layer.bias is None else Ref(layer.bias.name)
    more: tuple[int, ...] = ()
    if isinstance(kept, Runs):
        more = (kept.rows, kept.run)
    elif isinstance(kept, TwoOfFour):
        more = layer.size[::-1]
    target = getattr(kernels, proposal.kernel).default
    args = (Ref(layer.x.name), *reads, bias, *more)
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} computes with esper::{proposal.kernel}{packer.note}",
        edits=(
            *packer.inserts,
            Retarget(node.name, target, args, packer.remembered(layer.origin())),
            *packer.gone,
        ),
        state=StateTransform(packer.state),
        lives=tuple(packer.lives),
        tolerance=proposal.tolerance,
        figures=packer.figures,
    )
