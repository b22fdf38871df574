"""What agents see at a boundary: one row for each part that may change, and the whole in figures.

All of it is plain floats by name, so that a recorded observation is enough to decide again. What is
one of several (a stage, a blueprint) is a figure of that name which is 1 where it holds. Figures of
parts that are 0 are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from esper.ecology.events import FIELDS
from esper.ecology.ledger import weight
from esper.ecology.order import stage_of
from esper.ecology.scars import expired, scar_view, scars
from esper.ir.ecology import Immunity

if TYPE_CHECKING:
    from esper.boundary import Boundary
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.ir.regions import Phage
    from esper.live.signal import Signal
    from esper.plan import Refusal
    from esper.propose import Proposal
    from esper.recorder.event import Event

Kind = Literal["slot", "phage", "axis"]
Figures = Mapping[str, float]
#: Name of the whole -> its figures; ID of a part -> its row.
Values = Mapping[str, Figures]

_SIGNALS = ("dmask", "dalpha", "saliency", "gradient", "alignment", "sign_variance")
UNDERWAY = ("incubating", "blending", "holding")


@dataclass(frozen=True)
class Row:
    """One part.

    Attributes:
        id: stable ID.
        kind: slot, phage or axis.
        figures: by name; see `slot_figures`, `phage_figures` and `axis_figures`.
    """

    id: str
    kind: Kind
    figures: Figures


class Observation:
    """One boundary as agents see it, made by `Boundary.observation`.

    Nothing is computed before it is read, and what was read stays as it was.

    Attributes:
        tick: of the boundary.
    """

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary
        self.session = boundary.session
        self.tick = self.session.tick
        self._causes: list[tuple[Proposal, Event]] = []

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Slots, phages and axes that can be cut or widened, in graph order."""
        model = self.session.model
        anatomy = model.anatomy
        rows = [Row(s, "slot", slot_figures(model, s)) for s in anatomy.slots]
        rows += [Row(p.id, "phage", phage_figures(model, p)) for p in anatomy.phages.values()]
        rows += [
            Row(a.id, "axis", axis_figures(model, a))
            for a in anatomy.axes.values()
            if a.frozen_reason is None
        ]
        signals = self.session.signals
        return tuple(
            Row(row.id, row.kind, _present({**row.figures, **signal_figures(signals.get(row.id))}))
            for row in rows
        )

    @cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """Everything that a policy reads, as it is recorded.

        `loss`: see `esper.live.losses.Losses.figures`. `run`: `tick`, `parameters`, how many slots
        are in each stage of `UNDERWAY`, how many `scars` there are, and the `debt` of all parts.
        `events`: the latest, newest first, `0.age`, `0.kind`, ... (`esper.ecology.events`). All
        else: rows by ID.
        """
        model = self.session.model
        ecology = model.ecology
        stages = [life.stage for life in ecology.slots().values()]
        run: dict[str, float] = {
            "tick": float(self.tick),
            "parameters": float(sum(p.numel() for p in model.parameters())),
            **{stage: float(stages.count(stage)) for stage in UNDERWAY if stage in stages},
            "scars": float(len(scars(ecology))),
            "debt": float(sum(page.debt for page in ecology.pages().values())),
        }
        rows = {row.id: dict(row.figures) for row in self.rows}
        whole = {"loss": self.session.losses.figures(), "run": run, "events": self._events()}
        return {**whole, **rows}

    def _events(self) -> dict[str, float]:
        shots = self.session.events.numbers(self.tick)
        pairs = (zip(FIELDS, row, strict=True) for row in shots)
        return _present({f"{i}.{n}": v for i, pair in enumerate(pairs) for n, v in pair})

    def refusal(self, proposal: Proposal) -> Refusal | None:
        """What the door would say to a proposal; None where it would let it in."""
        return self.session.refusals.of(proposal)

    # -- causes ----------------------------------------------------------------------------------

    def because(self, proposal: Proposal, event: Event | None) -> Proposal:
        """Remember which event led to a proposal, if one is recorded; `Boundary.submit` asks."""
        if event is not None:
            self._causes.append((proposal, event))
        return proposal

    def cause(self, proposal: Proposal) -> Event | None:
        """The event that led to this very proposal object."""
        return next((event for own, event in self._causes if own is proposal), None)


# -- rows ------------------------------------------------------------------------------------------


def slot_figures(model: Model, slot: str) -> dict[str, float]:
    """The figures of a slot.

    `dims`, `width`: of its value: dimensions, and size of the channels (the second dimension of an
    image, else the last). `age`: ticks in the present stage, whose name is a figure too. `planted`:
    seeds so far. `blueprint.NAME`: what was planted last. `alpha`: of the seed in it. `quarantine`:
    ticks that it lasts still. `scar`: whether something was removed here, with `scar_age`,
    whether it has `expired`, and by what the loss was to change without (`scar_change`).
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


def _present(figures: Figures) -> dict[str, float]:
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
        "harm": weight(page, tick),
        "probes": float(len(page.probes)),
        "critical": float(max(0, page.critical_until - tick)),
        "cooldown": float(max(0, page.cooldown_until - tick)),
        "leased": float(max(0, page.lease_until - tick)),
        "sedated": float(page.sedated),
    }
    if page.probes:
        last = page.probes[-1]
        figures |= {
            f"found.{last.outcome}": 1.0,
            "found_age": float(tick - last.tick),
            "found_change": last.change,
            "found_batches": float(last.batches),
        }
    return figures
