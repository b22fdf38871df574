"""A tiny training program whose agent cuts units and plants seeds, with places to plant faults."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch

import esper
from esper import contracts, propose
from esper.boundary import Boundary
from esper.ir.ecology import Blend, SlotLife
from esper.ir.model import Model
from esper.passbase import Rewrite, rewrites
from esper.plan import Plan, Refusal, SetLife
from esper.propose import ProposalBase, PruneUnits
from esper.recorder import policy
from esper.recorder.calls import Call
from esper.recorder.decisions import HeadMask, HeadSample, Mask
from esper.recorder.generators import Generators
from esper.session import Session
from tests.live.training import batch, step, traced

AXIS = "axis:block.0/neurons"
#: What tests change.
FAULTS: dict[str, Any] = {}


class Mark(ProposalBase):
    """A stand-in for planting: it gives a slot a life with a blend."""

    type: Literal["test-mark"] = "test-mark"
    slot: str
    blend: Blend

    @property
    def targets(self) -> tuple[str, ...]:
        """The slot."""
        return (self.slot,)


class MarkRewrite(Rewrite):
    """Its rewrite."""

    type = "test-mark"

    def plan(self, model: Model, proposal: Mark) -> Plan | Refusal:
        """Only the life changes."""
        life = SlotLife(stage="incubating", since=model.ecology.tick, blend=proposal.blend)
        return Plan(proposal, "marked", lives=(SetLife(proposal.slot, life),))


@contextmanager
def installed() -> Iterator[None]:
    """The vocabulary with the stand-in."""
    before = dict(propose._others)
    propose.register(Mark)
    rewrites()["test-mark"] = MarkRewrite()
    try:
        yield
    finally:
        del rewrites()["test-mark"]
        propose._others.clear()
        propose._others.update(before)


@esper.replayable
class Cutter:
    """Three heads: what to do, with which unit, along which curve."""

    def __init__(self, weights: dict[str, torch.Tensor] | None = None, bias: float = 0.2) -> None:
        self.weight = 0.7 if weights is None else float(weights["w"])
        self.bias = bias

    def decide(
        self, values: Any, masks: policy.Masks, generators: Generators
    ) -> Sequence[HeadSample]:
        """Larger losses plant, wider layers are cut."""
        weight = self.weight + FAULTS.get("weight", 0.0)
        logits = (self.bias, 0.1 * values["units"], weight * values["loss"])
        mask = policy.mask_of(masks, "op")
        op = policy.sample("op", logits, mask, generators, stream="tamiyo")
        made = [op]
        given = policy.chosen(made)
        for head in ("unit", "curve"):
            mask = policy.mask_of(masks, head, given)
            flat = (0.0,) * len(mask.choices)
            made.append(policy.sample(head, flat, mask, generators, stream="tamiyo", given=given))
        return made


def _mask(model: Model) -> Mask:
    units = model.anatomy.axes[AXIS].unit_ids
    cut = contracts.check(model, PruneUnits(axis=AXIS, units=units[:1]))
    rule = "" if cut is None else cut.code
    nothing = ("-",), (True,), ("",)
    curves = ("linear", "cosine", "sigmoid")
    return Mask(
        {
            "op": HeadMask(("keep", "cut", "mark"), (True, not rule, True), ("", rule, "")),
            "unit": HeadMask(*nothing),
            "unit|op=cut": HeadMask(
                tuple(map(str, units)), (True,) * len(units), ("",) * len(units)
            ),
            "curve": HeadMask(*nothing),
            "curve|op=mark": HeadMask(curves, (True,) * 3, ("",) * 3),
        },
        {} if cut is None else {rule: cut.reason},
    )


def act(session: Session, boundary: Boundary, cutter: Cutter, loss: float) -> None:
    """One decision and what follows from it."""
    model = session.model
    values = {"loss": loss, "units": model.anatomy.axes[AXIS].size}
    samples, cause = policy.decide(
        cutter, values, _mask(model), session.generators,
        recorder=session.recorder, agent="tamiyo", target=AXIS,
    )  # fmt: skip
    chosen = policy.chosen(samples)
    if chosen["op"] == "cut":
        cut = PruneUnits(axis=AXIS, units=(int(chosen["unit"]),), proposer="tamiyo")
        boundary.submit(cut, cause=cause)
    if chosen["op"] == "mark":
        blend = Blend(curve=FAULTS.get("curves", {}).get(chosen["curve"], chosen["curve"]))
        slot = f"slot:test{session.tick}"
        boundary.submit(Mark(slot=slot, blend=blend, proposer="tamiyo"), cause=cause)


@cache
def _traced() -> Model:
    return traced(torch.float32)


@esper.program
def train(
    recorder: Any,
    seed: int = 0,
    steps: int = 10,
    weights: str = "",
    broken_at: int = -1,
    stop_at: int = -1,
) -> Session:
    """The run. `stop_at` raises in the middle, as a crash would."""
    generators = esper.Generators(seed)
    model = copy.deepcopy(_traced())
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=FAULTS.get("lr", 0.01))
    session = esper.Session(
        model,
        optimizer,
        recorder=recorder,
        generators=generators,
        governor=esper.Governor() if broken_at >= 0 else None,
        keyframe_every=2,
        recording=esper.Recording(
            digests_every=3,
            keyframes_every=4,
            config={"about": "a test"},
            agents={"tamiyo": Call.of(Cutter, weights, bias=0.25)},
        ),
    )
    cutter = Cutter(bias=0.25)
    hook: Callable[[int], None] = FAULTS.get("hook", lambda tick: None)
    broken = False
    while session.tick < steps:
        tick = session.tick
        hook(tick)
        data = batch(generators["data"].generator_at(tick + FAULTS.get("shift", 0)), torch.float32)
        loss = step(model, optimizer, data)
        if tick == broken_at and not broken:
            broken, loss = True, float("nan")
        with session.boundary(loss, batch=data) as boundary:
            if not boundary.rolled_back:
                act(session, boundary, cutter, loss)
    session.close()
    return session
