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
from esper.ecology.scars import scars
from esper.live.rows import (
    axis_figures,
    group_figures,
    phage_figures,
    present,
    signal_figures,
    slot_figures,
)
from esper.live.unit_groups import unit_groups

if TYPE_CHECKING:
    from esper.boundary import Boundary
    from esper.plan import Refusal
    from esper.propose import Proposal
    from esper.recorder.event import Event

Kind = Literal["slot", "phage", "axis", "units"]
Figures = Mapping[str, float]
#: Name of the whole -> its figures; ID of a part -> its row.
Values = Mapping[str, Figures]

UNDERWAY = ("incubating", "blending", "holding")


@dataclass(frozen=True)
class Row:
    """One part.

    Attributes:
        id: stable ID; of a group of units that of its axis with their birth numbers.
        kind: slot, phage, axis, or units of an axis.
        figures: by name; see `esper.live.rows`.
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
        """Slots, phages, axes that can be cut or widened, and groups of units that could go."""
        model, signals = self.session.model, self.session.signals
        anatomy = model.anatomy
        axes = [axis for axis in anatomy.axes.values() if axis.frozen_reason is None]
        made = [Row(s, "slot", slot_figures(model, s)) for s in anatomy.slots]
        made += [Row(p.id, "phage", phage_figures(model, p)) for p in anatomy.phages.values()]
        made += [Row(a.id, "axis", axis_figures(model, a)) for a in axes]
        found = [
            Row(row.id, row.kind, {**row.figures, **signal_figures(signals.get(row.id))})
            for row in made
        ]
        found += [
            Row(group.id, "units", group_figures(model, group, signals))
            for axis in axes
            for group in unit_groups(model, axis, signals)
        ]
        return tuple(Row(row.id, row.kind, present(row.figures)) for row in found)

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
        return present({f"{i}.{n}": v for i, pair in enumerate(pairs) for n, v in pair})

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
