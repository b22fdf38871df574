"""Tamiyo grows: a seed, or more units, where the gradient asks for it and the loss falls no more.

She chooses among all blueprints of the table that fit a slot, those of users included. She advances
nothing: what she planted blends in, holds and commits by its own criteria (`esper.live.lifecycle`),
or is culled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from esper.agents.agent import RuleAgent
from esper.agents.growth_acts import NAME, PLANT, WIDEN
from esper.agents.growth_rules import RULES
from esper.agents.rules import Rule
from esper.agents.space import Act
from esper.recorder.calls import replayable


@replayable
@dataclass(frozen=True, kw_only=True)
class Tamiyo(RuleAgent):
    """Grows by `RULES`.

    Attributes:
        plateau: a loss that falls by less than this share over half its window falls no more.
        enough: loss below which nothing grows.
        most: seeds that may be underway at a time.
        budget: parameters from which on nothing grows; 0: no limit.
        prefer: blueprints that come before all others wherever they fit, such as your own.
    """

    name: ClassVar[str] = NAME
    rules: ClassVar[tuple[Rule, ...]] = RULES
    acts: ClassVar[tuple[Act, ...]] = (PLANT, WIDEN)

    plateau: float = 0.05
    enough: float = 0.0
    most: int = 1
    budget: int = 0
    prefer: tuple[str, ...] = ()
