"""The figures of each kind of part that an observation has a row for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from esper.ecology import ledger
from esper.ecology.blast import blast_radius
from esper.ecology.order import stage_of
from esper.ecology.scars import expired, scar_view
from esper.ir.ecology import Finding, Immunity
from esper.propose import PruneUnits

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.ir.regions import Phage
    from esper.live.signal import Signal
    from esper.live.signals import Signals
    from esper.live.unit_groups import UnitGroup

_SIGNALS = ("dmask", "dalpha", "saliency", "gradient", "alignment", "sign_variance")


def slot_figures(model: Model, slot: str) -> dict[str, float]:
    """The figures of a slot.

    `dims`, `width`: of its value: dimensions, and size of the channels (the second dimension of an
    image, else the last). `age`: ticks in the present stage, whose name is a figure too. `planted`:
    seeds so far. `blueprint.NAME`: what is planted; `culled.NAME`: how often that was culled here.
    `alpha`: of the seed in it. `quarantine`: ticks that it lasts still. `scar`: whether something
    was removed here, with `scar_age`, whether it has `expired`, and by what the loss was to change
    without (`scar_change`).
    """
    tick, life = model.ecology.tick, model.ecology.slot(slot)
    shape = model.anatomy.slots[slot].shape
    width = shape[1 if len(shape) == 4 else -1] if shape else 0
    alpha = model.tensor(life.alpha) if life.alpha else None
    figures = {
        stage_of(life, tick): 1.0,
        "dims": float(len(shape)),
        "width": float(width) if isinstance(width, int) else 0.0,
        "age": float(tick - life.since),
        "planted": float(life.planted),
        "quarantine": float(max(0, life.quarantine_until - tick)),
    }
    if alpha is not None:
        figures["alpha"] = float(alpha.detach())
    for name in life.culled:
        figures[f"culled.{name}"] = figures.get(f"culled.{name}", 0.0) + 1.0
    if life.blueprint:
        figures[f"blueprint.{life.blueprint}"] = 1.0
    view = scar_view(model.ecology, slot)
    if view is not None:
        over = float(expired(model.ecology, slot))
        figures |= {"scar": 1.0, "scar_age": float(view.scar_age), "expired": over}
        scar = model.ecology.slot(slot).scar
        change = None if scar is None else scar.figures.get("change")
        if change is not None:
            figures["scar_change"] = float(change)
    return figures


def phage_figures(model: Model, phage: Phage) -> dict[str, float]:
    """The figures of a phage.

    `parameters`, `nodes`: what would go with it (the blast radius). `bypassable`: whether it may
    go. The rest is its page of the immune ledger, see `ledger_figures`.
    """
    return {
        "parameters": float(phage.parameters),
        "nodes": float(len(phage.nodes)),
        "bypassable": float(phage.bypassable),
        **ledger_figures(model.ecology.immunity(phage.id), model.ecology.tick),
    }


def axis_figures(model: Model, axis: Axis) -> dict[str, float]:
    """The figures of an axis: `size`, `exact` (units go without touching others), its ledger."""
    return {
        "size": float(axis.size),
        "exact": float(axis.lossy_reason is None),
        **ledger_figures(model.ecology.immunity(axis.id), model.ecology.tick),
    }


def group_figures(model: Model, group: UnitGroup, signals: Signals) -> dict[str, float]:
    """The figures of a group of units that could go together.

    `units`: how many. `parameters`: elements that would go with them. `dmask`, `saliency`: sums of
    their signals. `debt`: the part of the debt of the region they lie in that their share of its
    parameters makes. Of the immune ledger: findings on exactly this group, as in `ledger_figures`;
    of its units' pages the highest `harm`, and `critical`, the ticks of the longest lock.
    """
    ecology = model.ecology
    tick, own = ecology.tick, set(group.units)
    pages = [ecology.immunity(name) for name in ledger.unit_pages(group.axis, group.units)]
    elements = blast_radius(model, PruneUnits(axis=group.axis, units=group.units))
    known = signals.units(group.axis) if group.axis in signals else None
    at = [] if known is None else [i for i, unit in enumerate(known.unit_ids) if unit in own]
    dmask, saliency = (
        (0.0, 0.0)
        if known is None
        else (float(known.dmask[at].sum()), float(known.saliency[at].sum()))
    )
    return {
        "units": float(len(group.units)),
        "parameters": float(elements),
        "dmask": dmask,
        "saliency": saliency,
        "debt": _debt(model, group.axis, elements),
        "harm": max(ledger.weight(page, tick) for page in pages),
        "critical": float(max(max(0, page.critical_until - tick) for page in pages)),
        **_findings([f for f in pages[0].probes if set(f.units) == own], tick),
    }


def _debt(model: Model, axis: str, elements: int) -> float:
    """What of the debt of the innermost region around an axis falls to some of its elements."""
    path = axis.removeprefix("axis:").rpartition("/")[0]
    around = [p for p in model.anatomy.phages.values() if f"{path}.".startswith(f"{p.path}.")]
    if not around:
        return 0.0
    host = min(around, key=lambda phage: phage.parameters)
    return model.ecology.immunity(host.id).debt * elements / max(host.parameters, elements)


def present(figures: Mapping[str, float]) -> dict[str, float]:
    """What is not zero: absent figures count as 0, and a record is half as long."""
    return {name: value for name, value in figures.items() if value}


def signal_figures(signal: Signal | None) -> dict[str, float]:
    """What of a boundary signal is known: `gradient`, `dmask`, `dalpha`, `saliency`, ..."""
    if signal is None:
        return {}
    named = {name: getattr(signal, name) for name in _SIGNALS}
    return {name: float(value) for name, value in named.items() if value is not None}


def ledger_figures(page: Immunity, tick: int) -> dict[str, float]:
    """The figures of a page of the immune ledger.

    `debt`. `harm`: antibodies at their present weight. `probes`: how many findings are remembered;
    of the latest `found.OUTCOME`, `found_age`, `found_change` (of the loss, higher is worse) and
    `found_batches`. `critical`, `cooldown`, `leased`: ticks that they last still. `sedated`.
    """
    figures = {
        "debt": page.debt,
        "harm": ledger.weight(page, tick),
        "critical": float(max(0, page.critical_until - tick)),
        "cooldown": float(max(0, page.cooldown_until - tick)),
        "leased": float(max(0, page.lease_until - tick)),
        "sedated": float(page.sedated),
    }
    return figures | _findings(page.probes, tick)


def _findings(findings: Sequence[Finding], tick: int) -> dict[str, float]:
    figures = {"probes": float(len(findings))}
    if findings:
        last = findings[-1]
        figures |= {
            f"found.{last.outcome}": 1.0,
            "found_age": float(tick - last.tick),
            "found_change": last.change,
            "found_batches": float(last.batches),
        }
    return figures
