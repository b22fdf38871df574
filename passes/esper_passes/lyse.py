"""The rewrites behind `Lyse` and `ForgetScar`: removal on evidence, and the scar that is left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from esper.ecology import ledger
from esper.ir.ecology import Scar, SlotLife, page_of
from esper.passbase import Rewrite
from esper.plan import Edit, Erase, Insert, Plan, Ref, Refusal, ReplaceUses, SetLife
from esper.propose import DropRegion, ForgetScar, Lyse, PruneUnits
from esper_passes.drop_regions import DropRegionRewrite
from esper_passes.liveness import fresh
from esper_passes.prune_units import PruneUnitsRewrite

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.regions import Phage

aten = torch.ops.aten


class LyseRewrite(Rewrite):
    """Units go as in prune-units; a region goes as in drop-region and leaves an identity."""

    type: ClassVar[str] = "lyse"

    def plan(self, model: Model, proposal: Lyse) -> Plan | Refusal:
        """Refuses what the plans that it builds on refuse, and regions on which a seed grows."""
        gone = tuple(
            SetLife(name, None)
            for name in ledger.pages(proposal.target, proposal.units)
            if name in model.ecology.lives
        )
        if proposal.units:
            cut = PruneUnits(axis=proposal.target, units=proposal.units)
            plan = PruneUnitsRewrite().plan(model, cut)
            if isinstance(plan, Refusal):
                return plan
            summary = f"lyse: {plan.summary}"
            return replace(plan, proposal=proposal, summary=summary, lives=gone)
        found = DropRegionRewrite().plan(model, DropRegion(region=proposal.target))
        if isinstance(found, Refusal):
            return found
        phage = model.anatomy.phages[proposal.target]
        erased = {edit.node for edit in found.edits if isinstance(edit, Erase)}
        seed = _planted(model, phage)
        for name, life in model.ecology.slots().items():
            growing = name != seed and life.stage in ("incubating", "blending", "holding")
            if growing and {life.input, life.output} & erased:
                return Refusal(
                    "seed-inside",
                    f"a seed is {life.stage} at {name}, inside {phage.id}",
                    name,
                    "cull the seed first, or let it finish",
                )
        return _scarred(model, proposal, phage, found, gone, seed)


def _scarred(
    model: Model,
    proposal: Lyse,
    phage: Phage,
    plan: Plan,
    gone: tuple[SetLife, ...],
    seed: str | None,
) -> Plan:
    """The plan of a drop, with an identity in the place of what left the region."""
    ecology, terms = model.ecology, model.ecology.terms
    slot = seed or f"slot:{phage.id.removeprefix('phage:')}.out"
    old = ecology.slot(slot)
    leaving = model.nodes[phage.exit if phage.merge is None else phage.merge]
    edits: list[Edit] = []
    scar, entry = old.input, model.nodes[phage.entry]
    if scar != entry.name or entry.target is not aten.alias.default:  # no seed grew on a scar here
        scar = fresh(model.nodes, "scar")
        around = phage.path.rpartition(".")[0]
        module = around if phage.merge is None else str(leaving.meta.get("module") or "")
        edits.append(
            Insert(
                scar,
                "call_function",
                aten.alias.default,
                (Ref(phage.entry),),
                before=leaving.name,
                module=module,
            )
        )
    for edit in plan.edits:
        passed_on = isinstance(edit, ReplaceUses) and edit.old == leaving.name
        edits.append(ReplaceUses(leaving.name, scar) if passed_on else edit)
    finding = ledger.evidence(ecology.immunity(phage.id), (), ecology.tick, terms)
    figures = dict(plan.figures)
    if finding is not None:
        figures |= {"change": finding.change, "error": finding.error, "batches": finding.batches}
    life = SlotLife(
        slot_kind="SCAR",
        stage="quarantined",
        since=ecology.tick,
        input=scar,
        planted=old.planted,
        culled=old.culled,
        quarantine_until=ecology.tick + terms.quarantine,
        scar=Scar(
            since=ecology.tick,
            last_removed_blueprint=old.blueprint if seed else phage.path,
            probe_outcome_summary="" if finding is None else finding.sentence(),
            figures=figures,
        ),
    )
    return replace(
        plan,
        proposal=proposal,
        summary=f"lyse: {plan.summary}; a scar is left at {slot}",
        edits=tuple(edits),
        lives=(*gone, SetLife(slot, life)),
        figures=figures,
    )


def _planted(model: Model, phage: Phage) -> str | None:
    """The slot whose committed seed the region is."""
    for name, life in model.ecology.slots().items():
        if life.stage == "committed" and life.seed == phage.path:
            return name
    return None


class ForgetScarRewrite(Rewrite):
    """The identity goes; what read it reads what it passed on."""

    type: ClassVar[str] = "forget-scar"

    def plan(self, model: Model, proposal: ForgetScar) -> Plan | Refusal:
        node = model.nodes.get(model.ecology.slot(proposal.slot).input)
        edits: list[Edit] = []
        if node is not None and node.target is aten.alias.default:
            source = node.all_input_nodes[0]
            edits = [ReplaceUses(node.name, source.name), Erase(node.name)]
        lives = [SetLife(proposal.slot, None)]
        page = page_of(proposal.slot)
        if page in model.ecology.lives:
            lives.append(SetLife(page, None))
        return Plan(
            proposal=proposal,
            summary=f"forget the scar at {proposal.slot}",
            edits=tuple(edits),
            lives=tuple(lives),
        )
