"""What Emrakul may do: probe a part, remove it, forget its scar. A part is a region or some units.

The proposers of these proposals are those of the final ones: a lease lets its holder alone touch a
target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from esper.agents.space import Act, Picks
from esper.live.unit_groups import UnitGroup
from esper.propose import ForgetScar, Lyse, Sedate

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal

NAME = "emrakul"


def _regions(observation: Observation, _: Picks) -> Sequence[str]:
    """Regions that may go and hold something still."""
    regions = [row for row in observation.rows if row.kind == "phage"]
    wanted = ("bypassable", "parameters")
    return [r.id for r in regions if all(r.figures.get(name) for name in wanted)]


def _groups(observation: Observation, _: Picks) -> Sequence[str]:
    return [row.id for row in observation.rows if row.kind == "units"]


def _scars(observation: Observation, _: Picks) -> Sequence[str]:
    return [r.id for r in observation.rows if r.kind == "slot" and r.figures.get("scar")]


def _of_region(kind: type[Sedate] | type[Lyse]) -> Callable[[Observation, Picks], Proposal]:
    return lambda _, picks: kind(target=picks["target"], proposer=NAME)


def _of_units(kind: type[Sedate] | type[Lyse]) -> Callable[[Observation, Picks], Proposal]:
    def build(_: Observation, picks: Picks) -> Proposal:
        group = UnitGroup.parse(picks["target"])
        return kind(target=group.axis, units=group.units, proposer=NAME)

    return build


PROBE = Act("probe", {"target": _regions}, _of_region(Sedate))
LYSE = Act("lyse", {"target": _regions}, _of_region(Lyse))
#: Probing a group of units.
WEIGH = Act("weigh", {"target": _groups}, _of_units(Sedate))
#: Cutting a group of units, as in `PruneUnits`, on the evidence that a lysis needs.
TRIM = Act("trim", {"target": _groups}, _of_units(Lyse))
FORGET = Act(
    "forget", {"target": _scars}, lambda _, picks: ForgetScar(slot=picks["target"], proposer=NAME)
)

#: Acts that look, and those that remove what was looked at.
PROBES = {"probe": "lyse", "weigh": "trim"}
REMOVALS = tuple(PROBES.values())
