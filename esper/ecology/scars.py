"""Scars: what is seen of them, what they cost, when they go."""

from __future__ import annotations

from dataclasses import dataclass

from esper.ir.ecology import Ecology, Terms


@dataclass(frozen=True)
class ScarView:
    """What an observer sees of a scar at a tick.

    Attributes:
        slot_kind: SCAR.
        scar_age: ticks since the removal.
        last_removed_blueprint: what was there: a seed's blueprint, or the module path of a region.
        probe_outcome_summary: on which evidence it went, in one sentence.
        quarantine_remaining: ticks before a seed may be planted there.
    """

    slot_kind: str
    scar_age: int
    last_removed_blueprint: str
    probe_outcome_summary: str
    quarantine_remaining: int


def scar_view(ecology: Ecology, slot: str) -> ScarView | None:
    """The scar at a slot, or None where there is none, or a seed that committed has closed it."""
    life = ecology.slot(slot)
    if life.slot_kind != "SCAR" or life.scar is None or life.stage == "committed":
        return None
    return ScarView(
        life.slot_kind,
        max(ecology.tick - life.scar.since, 0),
        life.scar.last_removed_blueprint,
        life.scar.probe_outcome_summary,
        max(life.quarantine_until - ecology.tick, 0),
    )


def scars(ecology: Ecology) -> dict[str, ScarView]:
    """All scars by slot."""
    views = {name: scar_view(ecology, name) for name in ecology.slots()}
    return {name: view for name, view in views.items() if view is not None}


def scar_rent(age: int, terms: Terms) -> float:
    """Rent per tick: it ramps up with age, so that a scar does not stay for ever unnoticed."""
    return terms.scar_rent * min(age / terms.scar_ramp, 1.0)


def expired(ecology: Ecology, slot: str) -> bool:
    """Whether a scar may be forgotten: it is old enough and nothing grows there."""
    view = scar_view(ecology, slot)
    bare = ecology.slot(slot).stage in ("quarantined", "dormant")
    return view is not None and bare and view.scar_age >= ecology.terms.scar_expiry
