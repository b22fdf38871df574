"""The rewrite behind `AdvanceSeed`: the joint of a seed changes with its stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from esper.ecology.sprout import identifier
from esper.ir.ecology import Blend, SlotLife
from esper.passbase import Rewrite
from esper.plan import Edit, Plan, Ref, Refusal, ReplaceUses, SetLife
from esper.propose import AdvanceSeed
from esper.state import Create, Replace, StateTransform
from esper_passes import seed_joint
from esper_passes.liveness import drops, dying, erase, unread
from esper_passes.plant_seed import namer

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.seed_joint import Joint

aten = torch.ops.aten


class AdvanceSeedRewrite(Rewrite):
    """incubating > blending > holding > committed, and back out by another blend."""

    type = "advance-seed"

    def plan(self, model: Model, proposal: AdvanceSeed) -> Plan | Refusal:
        """Refuses a blend of another algorithm (`algorithm-fixed`) and `seed-changed`."""
        life = model.ecology.slot(proposal.slot)
        joint = seed_joint.read_joint(model, proposal.slot, life)
        if isinstance(joint, Refusal):
            return joint
        assert life.blend is not None
        blend = proposal.blend or life.blend
        if blend.algorithm != life.blend.algorithm:
            return Refusal(
                "algorithm-fixed",
                f"the seed of {proposal.slot} learned to {life.blend.algorithm}, "
                f"not to {blend.algorithm}",
                proposal.slot,
                f"blend with algorithm={life.blend.algorithm!r}, or plant another seed",
            )
        if proposal.to == "committed":
            return _commit(model, proposal, life, joint)
        if proposal.to == "holding":
            return _hold(model, proposal, life)
        if life.alpha:
            return _turn(model, proposal, life, blend)
        return _blend(model, proposal, life, blend, joint)


def _blend(model: Model, proposal: AdvanceSeed, life: SlotLife, blend: Blend, joint: Joint) -> Plan:
    """The seed reads the host's value itself and comes in with alpha."""
    value = joint.host.meta["val"]
    alpha = f"{life.seed}.{seed_joint.ALPHA}"
    writer = _writer(model, life, joint)
    output = seed_joint.mix(
        writer, blend.algorithm, Ref(joint.host.name), Ref(joint.contribution.name), alpha
    )
    edits: list[Edit] = [*writer.edits, ReplaceUses(joint.output.name, output.name)]
    edits += erase(joint.nodes)
    entry = model.nodes.get(life.entry)
    if entry is not None:
        source: Any = entry.args[0]
        edits += [ReplaceUses(entry.name, source.name), *erase([entry])]
    start = torch.tensor(blend.start, dtype=value.dtype, device=value.device)
    return Plan(
        proposal=proposal,
        summary=f"the seed of {proposal.slot} blends in by {blend.algorithm} ({blend.curve}, "
        f"{blend.ticks} ticks)",
        edits=tuple(edits),
        state=StateTransform({alpha: (Create(start, trainable=False),)}),
        lives=_lives(model, proposal, life, output=output.name, entry="", alpha=alpha, blend=blend),
        tolerance="exact" if blend.start == 0 else "lossy",
    )


def _turn(model: Model, proposal: AdvanceSeed, life: SlotLife, blend: Blend) -> Plan:
    """Another blend takes over from where alpha is."""
    blend = blend.model_copy(update={"start": _alpha(model, life)})
    return Plan(
        proposal=proposal,
        summary=f"alpha of {proposal.slot} goes from {blend.start:g} to {blend.end:g}",
        lives=_lives(model, proposal, life, blend=blend),
    )


def _hold(model: Model, proposal: AdvanceSeed, life: SlotLife) -> Plan:
    alpha = model.tensor(life.alpha)
    assert alpha is not None
    there = float(alpha) == 1.0
    whole = torch.ones_like(alpha, requires_grad=False)
    return Plan(
        proposal=proposal,
        summary=f"the seed of {proposal.slot} is on probation",
        state=StateTransform({} if there else {life.alpha: (Replace(whole),)}),
        lives=_lives(model, proposal, life),
        tolerance="exact" if there else "lossy",
    )


def _commit(model: Model, proposal: AdvanceSeed, life: SlotLife, joint: Joint) -> Plan | Refusal:
    """Alpha is one: the blend goes, and with `replace` the phage that the seed stands for."""
    assert life.blend is not None
    alpha = _alpha(model, life)
    if alpha != 1.0:
        return Refusal(
            "gate-criteria", f"alpha of {proposal.slot} is {alpha:g}, not 1", proposal.slot
        )
    if life.blend.algorithm == "replace":
        seed = joint.contribution
        gone = dying(model, [joint.output], keep=seed)
        place = {"input": seed.name, "output": seed.name}
        edits: list[Edit] = [ReplaceUses(joint.output.name, seed.name), *erase(gone)]
    else:
        writer = _writer(model, life, joint)
        output = writer.call(
            aten.add.Tensor, Ref(joint.host.name), Ref(joint.contribution.name), wish="committed"
        )
        gone = list(joint.nodes)
        place = {"output": output.name}
        edits = [*writer.edits, ReplaceUses(joint.output.name, output.name), *erase(gone)]
    lost = unread(model, gone)
    scarless = {"alpha": "", "slot_kind": "SEED", "scar": None}
    return Plan(
        proposal=proposal,
        summary=f"the seed of {proposal.slot} is committed as phage:{life.seed}",
        edits=tuple(edits),
        state=StateTransform(drops(lost)),
        lives=_lives(model, proposal, life, **place, **scarless),
        figures={"nodes_removed": len(gone)},
    )


def _writer(model: Model, life: SlotLife, joint: Joint) -> seed_joint.Writer:
    return seed_joint.Writer(life.seed, identifier(life.seed), joint.output.name, namer(model))


def _alpha(model: Model, life: SlotLife) -> float:
    alpha = model.tensor(life.alpha)
    assert alpha is not None
    return float(alpha)


def _lives(
    model: Model, proposal: AdvanceSeed, life: SlotLife, **changes: Any
) -> tuple[SetLife, ...]:
    now = {"stage": proposal.to, "since": model.ecology.tick, **changes}
    return (SetLife(proposal.slot, life.model_copy(update=now)),)
