"""A training program that probes, removes, breaks and goes on, for replays."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

import esper
from esper.ecology.betting import Rule
from esper.ir.ecology import Terms
from esper.ir.model import Model
from esper.propose import GrantLease, Lyse, PruneUnits, TendLedger
from esper.session import Session
from tests.live.training import batch, step, traced

AXIS = "axis:block.0/neurons"
CUT = PruneUnits(axis=AXIS, units=(5,))


@cache
def _traced() -> Model:
    return traced()


def _loss(model: Any, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(pair[0]), pair[1])


@esper.program
def train(recorder: Any, seed: int = 0) -> Session:
    """Eight ticks; the loss after the cut of tick 3 is not finite, once."""
    generators = esper.Generators(seed)
    model = copy.deepcopy(_traced())
    with torch.no_grad():
        model.get_parameter("block.2.weight").zero_()  # so the block is dispensable
        model.get_parameter("block.2.bias").zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    session = esper.Session(
        model,
        optimizer,
        recorder=recorder,
        generators=generators,
        governor=esper.Governor(),
        terms=Terms(half_life=2.0, cooldown=1),
    )
    broken = False
    while session.tick < 8:
        tick = session.tick
        data = batch(generators["data"].generator_at(tick))
        loss = step(model, optimizer, data)
        if tick == 4 and not broken:
            broken, loss = True, float("nan")
        with session.boundary(loss, batch=data) as boundary:
            tick = session.tick  # an earlier one after a rollback
            if tick == 1:
                held = (batch(generators["held"].generator_at(i)) for i in range(40))
                boundary.probe("phage:block", held, loss=_loss, rule=Rule(margin=0.05))
                boundary.submit(TendLedger())
            if tick == 3:
                # The keyframe lies between the lease and the cut.
                boundary.submit(GrantLease(target=AXIS, holder="user", until=9))
                boundary.submit(CUT)
            if tick == 6:
                boundary.submit(Lyse(target="phage:block"))
    session.close()
    return session
