"""The rewrite behind `LowerLinear`: a weight is packed and its layer calls a kernel.

Packing moves elements and computes nothing, so gradients, optimizer moments and averages move
along, and unpacking gives the same weight again, bit for bit. Whatever is dropped is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.passbase import Rewrite
from esper.plan import Plan, Ref, Refusal, Retarget
from esper.propose import LowerLinear
from esper.propose.lowering import OF_RUNS
from esper.state import StateTransform
from esper_passes.kept import Kept, Runs, TwoOfFour, kept_runs, kept_two_of_four
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lowerable import Lowerable, lowerable
from esper_passes.packed_weight import Packer

if TYPE_CHECKING:
    from esper.ir.model import Model


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
    layer = lowerable(model, model.nodes[name])
    if layer is None:
        return Refusal(
            "no-weight",
            f"%{name} is no linear layer with a weight of its own",
            name,
            "name a linear layer",
        )
    if isinstance(layer, Refusal):
        return layer
    if (layer.scale is not None) != ("int8" in proposal.kernel):
        kind = "floating" if layer.scale is None else "int8"
        return Refusal(
            "other-weight",
            f"{layer.weight} is {kind}, which {proposal.kernel} does not read",
            name,
            "quantise it first" if layer.scale is None else "name a kernel of int8 weights",
        )
    return layer


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
