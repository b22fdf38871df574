"""What Tamiyo may do: plant any blueprint of the table that fits a slot, or widen an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esper.agents.space import Act, Picks
from esper.ecology.blueprints import LAYOUTS, table
from esper.ecology.curves import TEMPOS, blend
from esper.propose import PlantSeed, WidenUnits

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal

NAME = "tamiyo"  # of the final proposals too: a lease lets its holder alone touch a target


def _slots(observation: Observation, _: Picks) -> Sequence[str]:
    return [row.id for row in observation.rows if row.kind == "slot"]


def _blueprints(observation: Observation, picks: Picks) -> Sequence[str]:
    slot = observation.session.model.anatomy.slots.get(picks["target"])
    layout = None if slot is None else LAYOUTS.get(len(slot.shape))
    return [name for name, blueprint in table().items() if layout in blueprint.layouts]


def _plant(observation: Observation, picks: Picks) -> Proposal:
    slot = picks["target"]
    algorithm: Any = picks["blend"]
    return PlantSeed(
        slot=slot,
        proposer=NAME,
        blueprint=picks["blueprint"],
        blend=blend(picks["tempo"], algorithm=algorithm),
        # Each seed of a slot draws its own weights.
        seed=observation.session.model.ecology.slot(slot).planted,
    )


PLANT = Act(
    "plant",
    {
        "target": _slots,
        "blueprint": _blueprints,
        "blend": lambda *_: ("add", "multiply", "gated"),
        "tempo": lambda *_: tuple(TEMPOS),
    },
    _plant,
)


def _axes(observation: Observation, _: Picks) -> Sequence[str]:
    return [row.id for row in observation.rows if row.kind == "axis"]


def _widen(observation: Observation, picks: Picks) -> Proposal:
    axis = observation.session.model.anatomy.axes.get(picks["target"])
    size = 1 if axis is None else axis.size  # what is gone is refused all the same
    count = max(1, size * SHARES[picks["share"]] // 100)
    return WidenUnits(axis=picks["target"], count=count, seed=size, proposer=NAME)


#: How many units come, in percent of those that are there.
SHARES = {"quarter": 25, "half": 50, "double": 100}

WIDEN = Act("widen", {"target": _axes, "share": lambda *_: tuple(SHARES)}, _widen)
