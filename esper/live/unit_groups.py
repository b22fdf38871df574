"""Groups of units that could go together: the least missed of an axis, and those found harmless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from esper.ecology import ledger

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.live.signals import Signals

SHARE = 8  # one in so many units of an axis goes at a time, but at least one


@dataclass(frozen=True)
class UnitGroup:
    """Some units of an axis.

    Attributes:
        axis: its ID.
        units: birth numbers, ascending.
    """

    axis: str
    units: tuple[int, ...]

    @property
    def id(self) -> str:
        """`axis:block.0/neurons[3,7]`."""
        return f"{self.axis}[{','.join(map(str, self.units))}]"

    @classmethod
    def parse(cls, name: str) -> UnitGroup:
        """From an `id`. Raises ValueError for what is none."""
        axis, bracket, units = name.removesuffix("]").rpartition("[")
        if not bracket:
            raise ValueError(f"{name!r} names no units of an axis")
        return cls(axis, tuple(map(int, units.split(","))))


def unit_groups(model: Model, axis: Axis, signals: Signals) -> tuple[UnitGroup, ...]:
    """What of an axis could go: groups whose harmless probe still counts, then the least missed.

    Least missed are the units of smallest first-order Taylor saliency, a small share of the axis.
    Nothing is said of an axis whose signals are not known yet.
    """
    if axis.size < 2:
        return ()
    found = dict.fromkeys(_harmless(model, axis))
    if axis.id in signals:
        known = signals.units(axis.id)
        order = torch.argsort(known.saliency.nan_to_num(torch.inf), stable=True).tolist()
        seen = [known.unit_ids[i] for i in order if known.saliency[i].isfinite()]
        if seen:
            found[tuple(sorted(seen[: max(1, axis.size // SHARE)]))] = None
    return tuple(UnitGroup(axis.id, units) for units in found)


def _harmless(model: Model, axis: Axis) -> list[tuple[int, ...]]:
    """Units that a removal may rest on, as they were sedated together."""
    ecology, living = model.ecology, set(axis.unit_ids)
    found = []
    for name, page in ecology.pages().items():
        if not name.startswith(f"{axis.id}["):
            continue
        for units in {tuple(sorted(finding.units)) for finding in page.probes}:
            first = UnitGroup(axis.id, units[:1]).id  # each group is on the pages of all its units
            proven = ledger.evidence(page, units, ecology.tick, ecology.terms) is not None
            if name == first and proven and living.issuperset(units):
                found.append(units)
    return sorted(found)
