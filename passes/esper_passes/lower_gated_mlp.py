"""The rewrite behind `LowerGatedMlp`: two layers, an activation and a product in one op."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.passbase import Rewrite
from esper.plan import Erase, Plan, Ref, Refusal, Retarget
from esper.propose import LowerGatedMlp
from esper.state import StateTransform
from esper_passes.editing import occupied
from esper_passes.gated import Gated, gated
from esper_passes.kept import Kept, kept_runs
from esper_passes.kernel_ops import ops as kernels
from esper_passes.packed_weight import Packer

if TYPE_CHECKING:
    from esper.ir.model import Model


class LowerGatedMlpRewrite(Rewrite):
    """The node of the product calls the kernel; layers and activation go."""

    type = "lower-gated-mlp"

    def plan(self, model: Model, proposal: LowerGatedMlp) -> Plan | Refusal:
        """Refuses other products (`no-gated-mlp`), and weights without the runs that are named."""
        return _planned(model, proposal, None)

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """A copy keeps the runs of the live model, and must be zero where that is, too."""
        assert isinstance(plan.proposal, LowerGatedMlp)
        return _planned(model, plan.proposal, plan)


def _planned(model: Model, proposal: LowerGatedMlp, live: Plan | None) -> Plan | Refusal:
    found = gated(model, model.nodes[proposal.node])
    if found is None:
        return Refusal(
            "no-gated-mlp",
            f"%{proposal.node} is no product act(x G^T) * (x U^T) of layers without biases",
            proposal.node,
            "lower its layers one by one",
        )
    if isinstance(found, Refusal):
        return found
    if (place := occupied(model, found.gone)) is not None:
        return place
    every: list[Kept | None] = [None, None]
    for number, layer in enumerate((found.gate, found.up)) if proposal.run else ():
        kept = kept_runs(model, layer, proposal.rows, proposal.run, live)
        if isinstance(kept, Refusal):
            return kept
        every[number] = kept
    return _plan(model, proposal, found, every)


def _plan(model: Model, proposal: LowerGatedMlp, found: Gated, kept: list[Kept | None]) -> Plan:
    _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the dense weights
    packer = Packer(model, found.node, proposal.freeze)
    runs = (proposal.rows or None, proposal.run or None)
    reads = [packer.add(each, k) for each, k in zip((found.gate, found.up), kept, strict=True)]
    # Values, then scales, then indices, of gate and up in turn.
    args = (Ref(found.gate.x.name), *(one for pair in zip(*reads, strict=True) for one in pair))
    return Plan(
        proposal=proposal,
        summary=f"%{found.node.name} computes with esper::gated_linear{packer.note}",
        edits=(
            *packer.inserts,
            Retarget(
                found.node.name,
                kernels.gated_linear.default,
                (*args, found.activation, *runs),
                packer.remembered(found.origin()),
            ),
            *(Erase(node.name) for node in found.gone),
            *packer.gone,
        ),
        state=StateTransform(packer.state),
        lives=tuple(packer.lives),
        tolerance=proposal.tolerance,
        figures=packer.figures,
    )
