"""Contract rules against oscillation: what was just done, or did harm, is not done again at once.

Each rule reads the ledger, the stages of slots and the model's terms (`esper.ir.ecology`), never
tensors. A model of which nothing is written there is refused nothing but removals without
evidence. The rules join `esper.contracts.RULES`; that a slot in quarantine takes no seed is a rule
of the order of stages (`esper.ecology.order`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from esper.ecology import ledger
from esper.ecology.scars import expired, scar_view, scars
from esper.ir.ecology import Immunity, page_of
from esper.ir.sleeping import asleep
from esper.plan import Refusal
from esper.propose import ForgetScar, GrantLease, Lyse, Proposal, Sedate, Wake

if TYPE_CHECKING:
    from esper.ir.model import Model

Rule = Callable[["Model", Proposal], Refusal | None]

# What only writes about a target, and what takes gates out: nothing forbids these.
_FREE = frozenset("note-probe tend-ledger grant-lease wake forget-scar".split())
_REMOVALS = frozenset("lyse prune-units drop-region merge-units merge-branches".split())
# Proposals after which the target is larger; other packages' growth joins with `register_growth`.
_GROWTH = set("widen-units plant-seed deepen add-branch".split())


def register_growth(type_: str) -> None:
    """Count a proposal type as growth, which targets in debt are refused (`rent-due`)."""
    _GROWTH.add(type_)


def sedated(model: Model, proposal: Proposal) -> Refusal | None:
    """`sedated`, `not-sedated`: one target sleeps at a time, and nothing changes meanwhile."""
    held = asleep(model)
    if isinstance(proposal, Wake):
        if model.ecology.immunity(proposal.target).sedated:
            return None
        return Refusal(
            "not-sedated",
            f"{proposal.target} is awake",
            proposal.target,
            f"sedated is {held[0]}" if held else "nothing is sedated",
        )
    if not held or proposal.type in _FREE:
        return None
    return Refusal(
        "sedated",
        f"{held[0]} is sedated: its gates are in the graph",
        held[0],
        f"wake it first: Wake(target={held[0]!r})",
    )


def leased(model: Model, proposal: Proposal) -> Refusal | None:
    """`leased`: while a lease runs, only its holder touches the target."""
    if proposal.type in _FREE and not isinstance(proposal, GrantLease):
        return None
    who = proposal.holder if isinstance(proposal, GrantLease) else proposal.proposer
    for name, page in _touched(model, proposal):
        if page.lease_until > model.ecology.tick and page.lease_holder != who:
            return Refusal(
                "leased",
                f"{name} is leased to {page.lease_holder} until tick {page.lease_until}",
                name,
                f"wait {_wait(model, page.lease_until)}, or choose another target",
            )
    return None


def cooldown(model: Model, proposal: Proposal) -> Refusal | None:
    """`cooldown`: a target that was changed rests before it is changed again."""
    if not ledger.is_change(proposal):
        return None
    for name, page in ledger.concerned(model.ecology, proposal):
        if page.cooldown_until > model.ecology.tick:
            return Refusal(
                "cooldown",
                f"{name} was changed a short while ago and rests until tick {page.cooldown_until}",
                name,
                f"wait {_wait(model, page.cooldown_until)}",
            )
    return None


def critical(model: Model, proposal: Proposal) -> Refusal | None:
    """`critical`: what a probe found to be needed is neither probed nor removed for a while."""
    if not isinstance(proposal, Sedate) and proposal.type not in _REMOVALS:
        return None
    for name, page in _touched(model, proposal):
        if page.critical_until > model.ecology.tick:
            return Refusal(
                "critical",
                f"{name} is locked until tick {page.critical_until}: a probe found it critical",
                name,
                f"wait {_wait(model, page.critical_until)}, or choose another target",
            )
    return None


def antibodies(model: Model, proposal: Proposal) -> Refusal | None:
    """`antibodies`: a change that did harm is refused until the memory of it has faded."""
    if not ledger.acts(proposal):
        return None
    terms, tick = model.ecology.terms, model.ecology.tick
    for name in ledger.blamed(proposal):
        page = model.ecology.lives.get(name)
        if not isinstance(page, Immunity):
            continue
        weight = ledger.weight(page, tick, proposal.type)
        if weight >= terms.antibodies:
            return Refusal(
                "antibodies",
                f"{proposal.type} did harm to {name} before: its antibodies weigh {weight:.2f}, "
                f"and {terms.antibodies:g} is too much",
                name,
                "wait until they have decayed, or choose another change",
            )
    return None


def rent_due(model: Model, proposal: Proposal) -> Refusal | None:
    """`rent-due`: what does not pay for itself does not grow; rents ramp with age."""
    if proposal.type not in _GROWTH:
        return None
    limit = model.ecology.terms.debt_limit
    pages = model.ecology.pages()
    for name in (name for t in proposal.targets for name in _hosts(t, pages)):
        if pages[name].debt >= limit:
            return Refusal(
                "rent-due",
                f"{name} owes {pages[name].debt:.3g} of rent, and {limit:g} is too much to grow",
                name,
                "probe it: a use that is proven pays, what is harmless to remove may go",
            )
    return None


def scar_cap(model: Model, proposal: Proposal) -> Refusal | None:
    """`scar-cap`: a model bears so many scars at a time."""
    if not isinstance(proposal, Lyse) or proposal.units:
        return None
    borne = scars(model.ecology)
    if len(borne) < model.ecology.terms.scars:
        return None
    oldest = max(borne, key=lambda name: borne[name].scar_age, default=None)
    remedy = "allow some: Terms(scars=...)"
    if oldest is not None:
        remedy = f"grow on a scar, or wait until {oldest} expires and forget it"
    return Refusal("scar-cap", f"the model bears {len(borne)} scars", proposal.target, remedy)


def no_evidence(model: Model, proposal: Proposal) -> Refusal | None:
    """`no-evidence`: a removal rests on a harmless probe of the same part, fresh and large enough.

    Units must have been sedated together: that each alone is dispensable says little of all.
    """
    if not isinstance(proposal, Lyse):
        return None
    ecology, terms = model.ecology, model.ecology.terms
    for name in ledger.pages(proposal.target, proposal.units):
        page = ecology.immunity(name)
        if ledger.evidence(page, proposal.units, ecology.tick, terms) is None:
            last = f": {page.probes[-1].sentence()}" if page.probes else ""
            return Refusal(
                "no-evidence",
                f"no harmless probe of exactly this part of {proposal.target} within "
                f"{terms.evidence_age} ticks and on {terms.evidence_batches} batches{last}",
                name,
                "probe it at this boundary: boundary.probe(target, batches, loss=..., units=...)",
            )
    return None


def scar_remains(model: Model, proposal: Proposal) -> Refusal | None:
    """`no-scar`, `scar-remains`: only a scar is forgotten, once it has expired and is bare."""
    if not isinstance(proposal, ForgetScar) or expired(model.ecology, proposal.slot):
        return None
    view = scar_view(model.ecology, proposal.slot)
    if view is None:
        return Refusal("no-scar", f"there is no scar at {proposal.slot}", proposal.slot)
    if model.ecology.slot(proposal.slot).stage not in ("quarantined", "dormant"):
        return Refusal("scar-remains", f"a seed grows on {proposal.slot}", proposal.slot)
    return Refusal(
        "scar-remains",
        f"the scar at {proposal.slot} is {view.scar_age} ticks old and expires at "
        f"{model.ecology.terms.scar_expiry}",
        proposal.slot,
        "wait until it has expired, or plant a seed on it",
    )


RULES: tuple[Rule, ...] = (
    sedated,
    leased,
    cooldown,
    critical,
    antibodies,
    rent_due,
    scar_cap,
    no_evidence,
    scar_remains,
)


def _wait(model: Model, until: int) -> str:
    left = until - model.ecology.tick
    return "one tick" if left == 1 else f"{left} ticks"


def _touched(model: Model, proposal: Proposal) -> Iterator[tuple[str, Immunity]]:
    """Written pages of what a proposal touches; with a region go the regions inside it."""
    yield from ledger.concerned(model.ecology, proposal)
    regions = {n: p for n, p in model.ecology.pages().items() if n.startswith("phage:")}
    for target in proposal.targets if regions else ():
        outer = model.anatomy.phages.get(target)
        held = set() if outer is None else set(outer.nodes)
        for name, page in regions.items():
            inner = model.anatomy.phages.get(name)
            if name != target and inner is not None and held.issuperset(inner.nodes):
                yield name, page


def _hosts(target: str, pages: dict[str, Immunity]) -> Iterator[str]:
    """The target's page and those of the regions that it lies in, by module path."""
    if page_of(target) in pages:
        yield page_of(target)
    kind, _, rest = target.partition(":")
    path = rest.rpartition("/")[0] if kind == "axis" else rest.removesuffix(".out")
    for name in pages:
        region = name.removeprefix("phage:")
        if region != name and f"{path}.".startswith(f"{region}."):
            yield name
