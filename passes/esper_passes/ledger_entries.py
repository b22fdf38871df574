"""The rewrites that only write into the immune ledger: findings, rents, leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esper.ecology import ledger
from esper.ecology.scars import scar_rent, scars
from esper.ir.ecology import Finding, Immunity, page_of
from esper.passbase import Rewrite
from esper.plan import Plan, Refusal, SetLife
from esper.propose import GrantLease, NoteProbe, TendLedger
from esper_passes.rents import shares

if TYPE_CHECKING:
    from esper.ir.model import Model


class NoteProbeRewrite(Rewrite):
    """The finding joins the pages of what was sedated: of each unit, or of the target."""

    type: ClassVar[str] = "note-probe"

    def plan(self, model: Model, proposal: NoteProbe) -> Plan | Refusal:
        ecology = model.ecology
        finding = Finding(
            tick=ecology.tick,
            outcome=proposal.outcome,
            change=proposal.change,
            error=proposal.error,
            batches=proposal.batches,
            units=proposal.units,
        )
        lives = tuple(
            SetLife(name, ledger.noted(ecology.immunity(name), finding, ecology.terms))
            for name in ledger.pages(proposal.target, proposal.units)
        )
        return Plan(
            proposal=proposal,
            summary=f"{proposal.target} is {finding.sentence()}",
            lives=lives,
            figures={"change": finding.change, "error": finding.error, "batches": finding.batches},
        )


class TendLedgerRewrite(Rewrite):
    """Regions and scars owe rent since they were last reckoned; pages of what is gone go."""

    type: ClassVar[str] = "tend-ledger"

    def plan(self, model: Model, proposal: TendLedger) -> Plan | Refusal:
        """Refuses uses of what does not live (`unknown-target`)."""
        ecology, phages = model.ecology, model.anatomy.phages
        tick, terms = ecology.tick, ecology.terms
        unknown = sorted(set(proposal.uses) - phages.keys())
        if unknown:
            return Refusal("unknown-target", f"there is no region {unknown[0]}", unknown[0])
        born = {life.seed: life.since for life in ecology.slots().values() if life.seed}
        pages: dict[str, Immunity | None] = {}
        for name, share in shares(model).items():
            page = ecology.immunity(name)
            since = born.get(phages[name].path)
            if since is not None:
                page = page.model_copy(update={"settled": max(page.settled, since)})
            age = None if since is None else tick - since
            rent = ledger.rent(share.parameters, share.flops, terms, age)
            use = proposal.uses.get(name, ledger.use(page, tick, terms))
            pages[name] = ledger.settled(page, tick, rent, use)
        for slot, view in scars(ecology).items():
            page, since = ecology.immunity(slot), tick - view.scar_age
            page = page.model_copy(update={"settled": max(page.settled, since)})
            rent = scar_rent(view.scar_age, terms)
            pages[page_of(slot)] = ledger.settled(page, tick, rent, 0.0)
        for name, page in ecology.pages().items():
            pages[name] = None if _gone(model, name) else pages.get(name) or page
        kept = {
            name: None if page is None else ledger.faded(page, tick) for name, page in pages.items()
        }
        lives = tuple(
            SetLife(name, page)
            for name, page in sorted(kept.items())
            if ecology.lives.get(name) != page
        )
        owed = sum(page.debt for page in kept.values() if page is not None)
        return Plan(
            proposal=proposal,
            summary=f"{len(lives)} pages of the ledger are brought up to tick {tick}",
            lives=lives,
            figures={"pages": len(lives), "debt": owed},
        )


def _gone(model: Model, page: str) -> bool:
    """Whether the part that a page is about lives no more."""
    name, _, unit = page.removesuffix("]").partition("[") if page.endswith("]") else (page, "", "")
    if name in model.identities.retired:
        return True
    axis = model.anatomy.axes.get(name)
    return bool(unit) and axis is not None and int(unit) not in axis.unit_ids


class GrantLeaseRewrite(Rewrite):
    """The lease is written on the target's page."""

    type: ClassVar[str] = "grant-lease"

    def plan(self, model: Model, proposal: GrantLease) -> Plan | Refusal:
        """Refuses targets that do not live (`unknown-target`)."""
        if not model.find(proposal.target):
            return Refusal(
                "unknown-target",
                f"there is no part {proposal.target}",
                proposal.target,
                "list the parts with `esper inspect`",
            )
        page = model.ecology.immunity(proposal.target)
        held = ledger.leased(page, proposal.holder, proposal.until)
        return Plan(
            proposal=proposal,
            summary=f"{proposal.target} is leased to {proposal.holder} until {proposal.until}",
            lives=(SetLife(page_of(proposal.target), held),),
        )
