"""An agent whose acts need nothing but cuts, drops and growth, and runs of the small model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch

import esper
from esper.agents.agent import RuleAgent
from esper.agents.rules import Rule
from esper.agents.space import ACT, Act, Picks, Space, following
from esper.live.observation import Observation
from esper.propose import DropRegion, PruneUnits, WidenUnits
from esper.recorder.calls import replayable
from tests.live.training import batch, step, traced


def _axes(observation: Observation, _: Picks) -> Sequence[str]:
    return [*observation.session.model.anatomy.axes, "axis:nowhere/neurons"]


def _phages(observation: Observation, _: Picks) -> Sequence[str]:
    return list(observation.session.model.anatomy.phages)


DROP = Act("drop", {"target": _phages}, lambda _, picks: DropRegion(region=picks["target"]))
CUT = Act(
    "cut",
    {"target": _axes, "unit": lambda *_: ("0", "1", "99")},
    lambda _, picks: PruneUnits(axis=picks["target"], units=(int(picks["unit"]),)),
)
WIDEN = Act(
    "widen",
    {
        "target": _axes,
        "init": lambda *_: ("zero", "net2net", "gradmax"),
        "count": lambda *_: ("2", "40"),
    },
    lambda _, picks: WidenUnits.model_validate(
        {"axis": picks["target"], "init": picks["init"], "count": int(picks["count"])}
    ),
)
ACTS = (DROP, CUT, WIDEN)


@replayable
@dataclass(frozen=True, kw_only=True)
class Gambler(RuleAgent):
    """Does anything that is allowed, at random; waits seldom."""

    name: ClassVar[str] = "gambler"
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("bored", ACT, "wait -2", lambda _, choice: -2.0 * (choice == "wait")),
        Rule("first", "target", "+1 for what comes first", lambda s, c: float(c == _first(s))),
    )
    acts: ClassVar[tuple[Act, ...]] = ACTS

    every: int = 1
    temperature: float = 1.0


def _first(scene: Any) -> str:
    return next(iter(scene.allowed("target", **scene.picks)), "")


def session(**options: Any) -> tuple[esper.Session, torch.Generator]:
    model = traced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return esper.Session(model, optimizer, **options), torch.Generator().manual_seed(3)


def train(
    run: esper.Session, agent: RuleAgent, steps: int, data: torch.Generator
) -> list[dict[str, Any]]:
    """Steps with the agent at each boundary; what it proposed, as plain data."""
    made: list[dict[str, Any]] = []
    for _ in range(steps):
        loss = step(run.model, run.optimizer, batch(data))
        with run.boundary(loss) as boundary:
            proposals = agent.propose(boundary.observation)
            for record in boundary.submit(*proposals):
                assert record.kind == "passed", record.line()
            made += [proposal.model_dump(mode="json") for proposal in proposals]
    return made


def every_decision(acts: Sequence[Act], observation: Observation) -> list[dict[str, str]]:
    """All complete picks, legal or not."""
    found = [{ACT: "wait"}]
    for act in acts:
        options = [
            [(head, c) for c in choices(observation, {})] for head, choices in act.heads.items()
        ]
        found += [{ACT: act.name, **dict(picks)} for picks in product(*options)]
    return found


def admitted(space: Space, acts: Sequence[Act], picks: Mapping[str, str]) -> bool:
    """Whether the masks, head by head, let these picks through."""
    made: dict[str, str] = {}
    while (head := following(acts, made)) is not None:
        mask = space["|".join([head, *(f"{k}={v}" for k, v in sorted(made.items()))])]
        if not mask.allowed[mask.choices.index(picks[head])]:
            return False
        made[head] = picks[head]
    return True
