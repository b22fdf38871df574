"""A training program whose proposals bring tensors along: scores, gradients, moments, solutions."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

import esper
from esper.ir.model import Model
from esper.passbase import Context
from esper.propose import LowRankSwap, RegrowMask, SetMask
from esper.session import Session
from esper_passes.gradmax import gradmax
from esper_passes.low_rank import moment_digest
from esper_passes.sparsify import Sparsify
from tests.live.training import batch, step, traced

WEIGHT = "block.2.weight"
AXIS = "axis:block.0/neurons"


@cache
def _traced() -> Model:
    return traced()


@esper.program
def train(recorder: Any, seed: int = 0) -> Session:
    """Six ticks, at each of which something changes by tensors that no log line could hold."""
    generators = esper.Generators(seed)
    model = copy.deepcopy(_traced())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    session = esper.Session(
        model, optimizer, recorder=recorder, generators=generators, signals_every=1
    )
    session.signals.watch(WEIGHT)
    while session.tick < 6:
        tick = session.tick
        data = batch(generators["data"].generator_at(tick))
        loss = step(model, optimizer, data)
        with session.boundary(loss, batch=data) as boundary:
            for wish in _wishes(session, tick):
                (record,) = boundary.submit(wish)
                assert record.kind == "passed", record.line()
            if tick == 5:  # refused then, and to be refused again
                boundary.submit(RegrowMask(tensor=WEIGHT, gradient="0" * 32))
    session.close()
    return session


def _wishes(session: Session, tick: int) -> Any:
    model, signals = session.model, session.signals
    if tick == 0:
        data = [batch(session.generators["solve"].generator_at(0))[0]]
        yield gradmax(model, AXIS, 4, data, lambda call, x: call(x).square().mean())
    if tick == 1:
        yield signals.mask(WEIGHT, "2:4", "taylor")
    if tick == 2:
        yield signals.regrow(WEIGHT, fraction=0.3)
    if tick == 3:
        only = Sparsify(saliency="random", only="stem.weight", pattern="2x2", keep_masks=True)
        yield from (w for w in only.propose(model, Context(seed=3)) if isinstance(w, SetMask))
    if tick == 4:
        moment = torch.diag(torch.arange(1.0, 11.0, dtype=torch.float64))
        named, payload = moment_digest(moment)
        model.payloads[named] = dict(payload)
        node = next(n.name for n in model.graph.nodes if "linear" in n.name and "3" in n.name)
        yield LowRankSwap(node=node, rank=2, moment=named)
