"""The immune ledger: pure functions from one page (`Immunity`) to the next.

A page remembers what touching its target did. Debt is rent that use has not paid. Antibodies are
remembered harm and fade by half every half-life. A harmful probe locks the target, the longer the
more often it was harmful. Nothing here changes a model: plans carry the pages that result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from esper.ir.ecology import Antibody, Ecology, Finding, Immunity, Terms, page_of
from esper.plan import Plan, SetLife
from esper.propose import Proposal

REMEMBERED = 8  # findings on a page
_FAINT = 1 / 64  # weight below which an antibody is forgotten
# Proposals that write into the ledger and leave graph and tensors alone.
_WRITES_ONLY = frozenset("note-probe tend-ledger grant-lease".split())
# Those that leave what a model computes as it is, or only take something back.
_HARMLESS = _WRITES_ONLY | frozenset("sedate wake forget-scar cull-seed".split())
# Those that go on with a change or end one, besides: their target need not have rested.
_GOES_ON = frozenset("advance-seed ramp-units regrow-mask gate-cells fold-mask clear-mask".split())
_GONE = frozenset({"drop-region"})  # the target is no more


def unit_pages(target: str, units: tuple[int, ...]) -> tuple[str, ...]:
    """IDs of the pages of single units: `axis:...[7]`."""
    return tuple(f"{target}[{unit}]" for unit in units)


def pages(target: str, units: tuple[int, ...] = ()) -> tuple[str, ...]:
    """IDs of the pages that a change is about: those of its units, if it names some."""
    return unit_pages(target, units) or (page_of(target),)


def blamed(proposal: Proposal) -> tuple[str, ...]:
    """IDs of the pages of all that a proposal changes."""
    units: tuple[int, ...] = tuple(getattr(proposal, "units", ()))
    return tuple(dict.fromkeys(p for t in proposal.targets for p in pages(t, units)))


def is_change(proposal: Proposal) -> bool:
    """Whether a proposal begins a change of its target, after which the target rests."""
    return proposal.type not in _HARMLESS | _GOES_ON


def acts(proposal: Proposal) -> bool:
    """Whether a proposal could break training, and is blamed when training breaks after it."""
    return proposal.type not in _HARMLESS


def only_writes(proposal: Proposal) -> bool:
    """Whether a proposal writes into the ledger and leaves graph and tensors alone."""
    return proposal.type in _WRITES_ONLY


# -- harm ----------------------------------------------------------------------------------------


def weight(page: Immunity, tick: int, against: str = "") -> float:
    """What antibodies weigh at a tick.

    Args:
        page: of the target.
        tick: now.
        against: a proposal type: only antibodies against it, or against any change, count.
    """
    return sum(
        _weight(antibody, tick)
        for antibody in page.antibodies
        if not against or antibody.against in ("", against)
    )


def _weight(antibody: Antibody, tick: int) -> float:
    age = max(tick - antibody.tick, 0)
    return float(antibody.harm * 0.5 ** (age / antibody.half_life))


def charged(page: Immunity, tick: int, against: str, terms: Terms) -> Immunity:
    """One more antibody of weight 1."""
    antibody = Antibody(tick=tick, harm=1.0, half_life=terms.half_life, against=against)
    return page.model_copy(update={"antibodies": (*page.antibodies, antibody)})


def lock_length(harmful: int, terms: Terms) -> int:
    """Ticks of the criticality lock after the `harmful`-th harmful probe that is remembered."""
    length = terms.lock * terms.lock_growth ** max(harmful - 1, 0)
    return round(min(length, max(terms.lock_most, terms.lock)))


def noted(page: Immunity, finding: Finding, terms: Terms) -> Immunity:
    """The page after a probe: harm leaves an antibody against removal and a longer lock."""
    found = (*page.probes, finding)[-REMEMBERED:]
    page = page.model_copy(update={"probes": found})
    if finding.outcome != "harmful":
        return page
    harmful = sum(f.outcome == "harmful" for f in found)
    until = finding.tick + lock_length(harmful, terms)
    locked = page.model_copy(update={"critical_until": max(page.critical_until, until)})
    return charged(locked, finding.tick, "lyse", terms)


def evidence(page: Immunity, units: tuple[int, ...], tick: int, terms: Terms) -> Finding | None:
    """The newest finding on exactly these units, if it suffices for a removal."""
    same = [f for f in page.probes if sorted(f.units) == sorted(units)]
    if not same:
        return None
    last = same[-1]
    fresh = tick - last.tick <= terms.evidence_age
    enough = last.batches >= terms.evidence_batches
    return last if last.outcome == "harmless" and fresh and enough else None


# -- rent ----------------------------------------------------------------------------------------


def rent(parameters: float, flops: float, terms: Terms, age: int | None = None) -> float:
    """Rent per tick of a part.

    Args:
        parameters, flops: its shares of the model's parameters and multiply-accumulates.
        terms: prices, and the age from which the rent is full.
        age: of a seed that became a part; None for what was there from the start.
    """
    full = terms.parameter_price * parameters + terms.flop_price * flops
    return full if age is None else full * min(age / terms.rent_ramp, 1.0)


def use(page: Immunity, tick: int, terms: Terms) -> float:
    """What a target is worth per tick: the loss that its last decided probe says it saves.

    What a probe said fades with the half-life, so that what is never probed comes into debt.
    """
    decided = [f for f in page.probes if f.outcome != "undecided"]
    if not decided:
        return 0.0
    last = decided[-1]
    age = max(tick - last.tick, 0)
    return float(max(last.change, 0.0) * 0.5 ** (age / terms.half_life))


def settled(page: Immunity, tick: int, rent: float, use: float) -> Immunity:
    """Rent less use since the page was last settled joins the debt, which never falls below 0."""
    ticks = max(tick - page.settled, 0)
    debt = max(page.debt + (rent - use) * ticks, 0.0)
    return page.model_copy(update={"debt": debt, "settled": tick})


def faded(page: Immunity, tick: int) -> Immunity | None:
    """The page without what no longer matters; None where nothing is left."""
    kept = tuple(a for a in page.antibodies if _weight(a, tick) >= _FAINT)
    update: dict[str, object] = {"antibodies": kept}
    if page.critical_until <= tick:
        update["critical_until"] = 0
    if page.cooldown_until <= tick:
        update["cooldown_until"] = 0
    if page.lease_until <= tick:
        update |= {"lease_until": 0, "lease_holder": ""}
    left = page.model_copy(update=update)
    return None if left == Immunity() else left


# -- permission ----------------------------------------------------------------------------------


def leased(page: Immunity, holder: str, until: int) -> Immunity:
    """The page with a lease."""
    return page.model_copy(update={"lease_holder": holder, "lease_until": until})


def rested(ecology: Ecology, plan: Plan) -> Plan:
    """The plan, after which the targets that it changes rest for the cooldown of the terms."""
    ticks, proposal = ecology.terms.cooldown, plan.proposal
    if not ticks or not is_change(proposal) or proposal.type in _GONE:
        return plan
    lives = {change.id: change for change in plan.lives}
    for target in proposal.targets:
        name = page_of(target)
        planned = lives.get(name)
        if ":" not in name or (planned is not None and planned.life is None):
            continue
        page = ecology.immunity(target) if planned is None else planned.life
        assert isinstance(page, Immunity)
        until = max(page.cooldown_until, ecology.tick + ticks)
        lives[name] = SetLife(name, page.model_copy(update={"cooldown_until": until}))
    return replace(plan, lives=tuple(lives.values()))


def concerned(ecology: Ecology, proposal: Proposal) -> Iterator[tuple[str, Immunity]]:
    """Written pages of the targets of a proposal and of the units that it names."""
    units: tuple[int, ...] = tuple(getattr(proposal, "units", ()))
    for target in proposal.targets:
        for name in (page_of(target), *unit_pages(target, units)):
            page = ecology.lives.get(name)
            if isinstance(page, Immunity):
                yield name, page
