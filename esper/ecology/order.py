"""Contract rules of the lifecycle: in which order a slot and its seed go through their stages.

dormant > incubating > blending > holding > committed, or culled > quarantined > dormant.

Rules look at the proposal and at the stages that the model carries, never at tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING

from esper.ecology.blueprints import table
from esper.ecology.criteria import GATES, gate
from esper.ir.ecology import PLANTED, SlotLife, Stage
from esper.plan import Refusal
from esper.propose import AdvanceSeed, CullSeed, PlantSeed, Proposal

if TYPE_CHECKING:
    from esper.ir.model import Model

#: Where a seed may go from each stage.
NEXT: Mapping[Stage, tuple[Stage, ...]] = MappingProxyType(
    {
        "incubating": ("blending", "quarantined"),
        "blending": ("blending", "holding", "quarantined"),
        "holding": ("blending", "committed", "quarantined"),
    }
)
#: Proposers that need no figures: a person answers for it, the lifecycle has judged by its gates.
EXEMPT = ("user", "lifecycle")


def stage_of(life: SlotLife, tick: int) -> Stage:
    """The stage at a tick: a quarantine that is over has left the slot dormant."""
    over = life.stage == "quarantined" and tick >= life.quarantine_until
    return "dormant" if over else life.stage


def known_slot(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-target`: a seed needs a slot whose value lives."""
    if not isinstance(proposal, (PlantSeed, AdvanceSeed, CullSeed)):
        return None
    slots = model.anatomy.slots
    if proposal.slot in slots:
        return None
    if not isinstance(proposal, PlantSeed) and proposal.slot in model.ecology.slots():
        return None
    near = get_close_matches(proposal.slot, slots, 1)
    remedy = f"did you mean {near[0]}?" if near else "list the slots with `esper inspect`"
    return Refusal("unknown-target", f"there is no slot {proposal.slot}", proposal.slot, remedy)


def known_blueprint(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-blueprint`: what is planted must be in the table."""
    if not isinstance(proposal, PlantSeed) or proposal.blueprint in table():
        return None
    near = get_close_matches(proposal.blueprint, table(), 1)
    hint = f"did you mean {near[0]}?" if near else f"blueprints are {', '.join(table())}"
    return Refusal(
        "unknown-blueprint", f"there is no blueprint {proposal.blueprint!r}", proposal.slot, hint
    )


def free_slot(model: Model, proposal: Proposal) -> Refusal | None:
    """`slot-occupied`, `quarantine`: a slot holds one seed, and rests after it was emptied."""
    if not isinstance(proposal, PlantSeed):
        return None
    life = model.ecology.slot(proposal.slot)
    stage = stage_of(life, model.ecology.tick)
    if stage in PLANTED:
        remedy = "plant in another slot, or cull that seed first"
        if stage == "committed":
            remedy = f"plant at slot:{life.seed}.out, behind it"
        reason = f"{proposal.slot} holds a {life.blueprint}, which is {stage}"
        return Refusal("slot-occupied", reason, proposal.slot, remedy)
    if stage == "quarantined":
        left = life.quarantine_until - model.ecology.tick
        return Refusal(
            "quarantine",
            f"{proposal.slot} rests for {left} more ticks",
            proposal.slot,
            "plant in another slot until then",
        )
    return None


def steady_host(model: Model, proposal: Proposal) -> Refusal | None:
    """`host-stage`: inside a seed that is not committed, nothing is planted while it moves."""
    if not isinstance(proposal, PlantSeed):
        return None
    for name, life in model.ecology.slots().items():
        within = life.seed and proposal.slot.startswith(f"slot:{life.seed}.")
        if within and life.stage == "blending":
            return Refusal(
                "host-stage",
                f"{proposal.slot} is inside the seed of {name}, which is blending",
                proposal.slot,
                "wait until it holds",
            )
    return None


def stage_order(model: Model, proposal: Proposal) -> Refusal | None:
    """`stage-order`: seeds go from stage to stage in order."""
    if not isinstance(proposal, (AdvanceSeed, CullSeed)):
        return None
    life = model.ecology.slot(proposal.slot)
    stage = stage_of(life, model.ecology.tick)
    wanted: Stage = "quarantined" if isinstance(proposal, CullSeed) else proposal.to
    if stage not in NEXT:
        holds = "what grew there is a phage now" if stage == "committed" else "it holds no seed"
        remedy = "propose drop-region for the phage" if stage == "committed" else "plant one first"
        reason = f"{proposal.slot} is {stage}: {holds}"
        return Refusal("stage-order", reason, proposal.slot, remedy)
    if wanted not in NEXT[stage]:
        return Refusal(
            "stage-order",
            f"the seed of {proposal.slot} is {stage} and cannot be {wanted} next",
            proposal.slot,
            f"next it may be {' or '.join(NEXT[stage])}",
        )
    blend = life.blend
    if isinstance(proposal, AdvanceSeed):
        blend = proposal.blend or blend
        if stage in ("blending", "holding") and wanted == "blending" and proposal.blend is None:
            return Refusal(
                "stage-order",
                f"the seed of {proposal.slot} is {stage}, and no other blend is given",
                proposal.slot,
                "give a blend that leads out again: esper.propose.Blend(start=1, end=0)",
            )
        if wanted == "holding" and blend is not None and blend.end != 1:
            return Refusal(
                "stage-order",
                f"the blend of {proposal.slot} leads to {blend.end:g}, and only whole seeds hold",
                proposal.slot,
                "cull the seed, or blend it to 1 first",
            )
    return None


def gate_criteria(model: Model, proposal: Proposal) -> Refusal | None:
    """`gate-criteria`: the evidence for a transition must be there and meet the gate's limits."""
    if not isinstance(proposal, AdvanceSeed):
        return None
    before = model.ecology.slot(proposal.slot).stage
    asked = gate(GATES, before, proposal.to)
    if asked is None or proposal.proposer in EXEMPT:
        return None
    figures = {k: float(v) for k, v in proposal.evidence.items() if not isinstance(v, str)}
    for criterion in asked.missing(figures):
        return Refusal(
            "gate-criteria",
            f"gate {asked.name} asks for {criterion.text()}, of which the evidence says nothing",
            proposal.slot,
            f"measure {criterion.figure}: {criterion.meaning}",
        )
    for criterion in asked.failing(figures):
        return Refusal(
            "gate-criteria",
            f"gate {asked.name} asks for {criterion.text()}, it is {figures[criterion.figure]:g}",
            proposal.slot,
            "wait, or cull the seed",
        )
    return None


RULES = (known_slot, known_blueprint, free_slot, steady_host, stage_order, gate_criteria)
