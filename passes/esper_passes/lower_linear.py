"""The rewrite behind `LowerLinear`: a weight is packed and its layer calls a kernel.

Packing moves elements and computes nothing, so gradients, optimizer moments and averages move
along, and unpacking gives the same weight again, bit for bit. Whatever is dropped is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from esper.passbase import Rewrite
from esper.plan import Plan, Ref, Refusal, Retarget
from esper.propose import LowerLinear
from esper.propose.lowering import OF_RUNS
from esper.state import StateTransform
from esper_passes.kept_runs import chosen, followed
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
    if isinstance(layer, Refusal) or proposal.kernel not in OF_RUNS:
        return layer if isinstance(layer, Refusal) else _plan(model, proposal, layer, None)
    rows, run = proposal.rows, proposal.run
    index = (
        chosen(model, layer, rows, run) if live is None else followed(model, layer, rows, run, live)
    )
    return index if isinstance(index, Refusal) else _plan(model, proposal, layer, index)


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


def _plan(model: Model, proposal: LowerLinear, layer: Lowerable, index: Tensor | None) -> Plan:
    _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the dense weight
    node, packer = layer.node, Packer(model, layer.node)
    reads = packer.add(layer, index, proposal.rows, proposal.run)
    bias = None if layer.bias is None else Ref(layer.bias.name)
    runs = () if index is None else (proposal.rows, proposal.run)
    args = (Ref(layer.x.name), *(read for read in reads if read is not None), bias, *runs)
    target = getattr(kernels, proposal.kernel).default
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} computes with esper::{proposal.kernel}",
        edits=(*packer.inserts, Retarget(node.name, target, args, layer.origin()), *packer.gone),
        state=StateTransform(packer.state),
        lives=tuple(packer.lives),
        tolerance=proposal.tolerance,
        figures={} if index is None else figures((layer, index), run=proposal.run),
    )


def figures(*packed: tuple[Lowerable, Tensor], run: int) -> dict[str, Any]:
    """What packing saves: density, and bytes of weights and indices before and after."""
    before = after = kept = every = 0
    for layer, index in packed:
        (outputs, inputs), size = layer.size, layer.read.meta["val"].element_size()
        kept += outputs * index.shape[1] * run
        every += outputs * inputs
        before += outputs * inputs * size
        after += outputs * index.shape[1] * run * size + index.numel() * index.element_size()
    return {"density": kept / every, "bytes_before": before, "bytes_after": after}
