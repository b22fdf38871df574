"""The rewrite behind `CullSeed`: a seed's nodes and tensors go, its slot rests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.ir.ecology import SlotLife
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Refusal, ReplaceUses, SetLife
from esper.propose import CullSeed
from esper.state import StateTransform
from esper_passes.liveness import drops, dying, erase, unread
from esper_passes.seed_joint import read_joint

if TYPE_CHECKING:
    from torch import fx

    from esper.ir.model import Model

_CULLED = 8  # that a slot remembers


class CullSeedRewrite(Rewrite):
    """The host's readers read the host's value again; before blending that is exact."""

    type = "cull-seed"

    def plan(self, model: Model, proposal: CullSeed) -> Plan | Refusal:
        """Refuses a seed that something outside relies on (`still-used`)."""
        life = model.ecology.slot(proposal.slot)
        resting = _resting(model, proposal, life)
        if life.output not in model.nodes:  # the host around it went, and the seed with it
            return Plan(
                proposal=proposal,
                summary=f"the seed of {proposal.slot} went with its host",
                lives=(SetLife(proposal.slot, resting), *_inside(model, life, set())),
            )
        joint = read_joint(model, proposal.slot, life)
        if isinstance(joint, Refusal):
            host = model.nodes.get(life.input)
            if host is None:
                return joint
        else:
            host = joint.host
        output = model.nodes[life.output]
        gone = dying(model, [output], keep=host)
        held = _seed_nodes(model, life) - set(gone)
        if held:
            node = min(held)
            return Refusal(
                "still-used", f"%{node.name} of the seed is needed outside of it", node.name
            )
        edits: list[Edit] = [ReplaceUses(output.name, host.name), *erase(gone)]
        lost = unread(model, gone)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        alpha = model.tensor(life.alpha) if life.alpha else None
        silent = life.stage == "incubating" or (alpha is not None and float(alpha) == 0)
        why = f": {proposal.reason}" if proposal.reason else ""
        return Plan(
            proposal=proposal,
            summary=f"cull the {life.blueprint} of {proposal.slot}{why}",
            edits=tuple(edits),
            state=StateTransform(drops(lost)),
            lives=(SetLife(proposal.slot, resting), *_inside(model, life, {n.name for n in gone})),
            tolerance="exact" if silent else "lossy",
            figures={
                "nodes_removed": len(gone),
                "parameters_removed": sum(sizes.get(name, 0) for name in lost),
            },
        )


def _resting(model: Model, proposal: CullSeed, life: SlotLife) -> SlotLife:
    """The slot as it rests: how its seed was planted is forgotten; what it was, and scars, stay."""
    tick = model.ecology.tick
    return SlotLife(
        slot_kind=life.slot_kind,
        stage="quarantined",
        since=tick,
        input=life.input,
        planted=life.planted,
        culled=(*life.culled, life.blueprint)[-_CULLED:],
        quarantine_until=tick + proposal.quarantine,
        scar=life.scar,
    )


def _inside(model: Model, life: SlotLife, gone: set[str]) -> list[SetLife]:
    """Slots within the seed go with it."""
    return [
        SetLife(name, None)
        for name, other in model.ecology.slots().items()
        if name.startswith(f"slot:{life.seed}.") or (other is not life and other.input in gone)
    ]


def _seed_nodes(model: Model, life: SlotLife) -> set[fx.Node]:
    return {
        node
        for node in model.graph.nodes
        if node.op == "call_function"
        and f"{node.meta.get('module') or ''}.".startswith(f"{life.seed}.")
    }
