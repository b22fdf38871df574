"""The one training program of all storyboards: a session with agents, replayable from its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from esper.agents import Emrakul, Tamiyo
from esper.demo.cost import CostMeter
from esper.demo.data import Data, images, text
from esper.demo.hosts import image_host, text_host
from esper.demo.probing import PROBING, Batch, Probing, cross_entropy
from esper.demo.runs import Change, Run
from esper.ecology.betting import Rule as StoppingRule
from esper.ecology.criteria import BLENDED, PROBATION, Criterion, StageGate
from esper.ir.ecology import Terms
from esper.live.governor import Governor
from esper.live.lifecycle import Lifecycle
from esper.live.recording import Recording
from esper.propose import Lyse
from esper.recorder.calls import Call, program
from esper.recorder.generators import Generators
from esper.session import Session

if TYPE_CHECKING:
    from esper.agents.agent import RuleAgent
    from esper.boundary import Boundary
    from esper.ir.model import Model

# Behind the host a seed learns from gradients that do not feel it yet, so the longer it stays, the
# larger its first steps in the open. Here it comes out as soon as it has a direction.
_GERMINATE = StageGate(
    "germinate",
    "incubating",
    "blending",
    (
        Criterion("ticks", ">=", 6, "ticks behind the host"),
        Criterion("gradient-finite", ">=", 1, "whether all gradient norms were finite", fatal=True),
    ),
)
# Losses of batches that are nearly all right have a long tail: only what is farther out is broken.
_FAR = 30.0
_RASH = StoppingRule(margin=20.0, error=0.3)


@program
def train(
    recorder: Any,
    *,
    host: str = "image",
    data: str = "",
    seed: int = 0,
    steps: int = 240,
    budget: float = 0.0,
    size: int = 32,
    rate: float = 3e-3,
    cool: int = 0,
    model: dict[str, Any] | None = None,
    agents: dict[str, dict[str, Any]] | None = None,
    agents_from: int = 0,
    agents_until: int = 0,
    cut: str = "",
    cut_at: int = 0,
    terms: dict[str, float] | None = None,
    margin: float = 0.02,
    keyframes_every: int = 0,
) -> Run:
    """Train a host with AdamW at a constant rate that may fall to zero at the end.

    Args:
        host: `image` or `text`.
        data: folder of images, see `esper.demo.data.images`.
        seed: of weights, batches and agents.
        steps: how many, unless `budget` ends it.
        budget: cost at which training ends; 0: only `steps` do.
        size: of a batch.
        rate: learning rate.
        cool: last steps, over which the rate falls to zero along a line.
        model: further arguments of the host, such as its width.
        agents: name -> options of the agents that act at boundaries.
        agents_from: tick from which they act.
        agents_until: tick from which they rest, so that what they did can heal; 0: never.
        cut: `most` or `least`: at `cut_at` someone removes the region that a sweep says is missed
            most, or least, whatever that costs.
        cut_at: tick of that.
        terms: of growth and decay, other than the usual (`esper.ir.ecology.Terms`).
        margin: a probe calls a rise of the loss above it harm.
        keyframes_every: boundaries between keyframes in the log.
    """
    with _one_thread():
        found = images(data) if host == "image" else text()
        made = (image_host if host == "image" else text_host)(found, seed, **(model or {}))
        options = agents or {}
        probing = PROBING[host]
        chosen = _made(options, found, probing, margin)
        calls = {name: Call.of(type(a), **options[name]) for name, a in chosen.items()}
        meter = CostMeter()
        optimizer = torch.optim.AdamW(made.parameters(), lr=rate)
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / max(cool, 1)))
        session = Session(
            made,
            optimizer,
            scheduler=scheduler,
            recorder=recorder,
            recording=Recording(agents=calls, keyframes_every=keyframes_every),
            generators=Generators(seed),
            stateful={"meter": meter},
            # The governor would take back what someone cuts in spite of the loss.
            governor=None if cut else Governor(deviations=_FAR, factor=_FAR),
            terms=Terms.model_validate(terms or {}),
            lifecycle=Lifecycle((_GERMINATE, BLENDED, PROBATION)),
            signals_every=10,
        )
        run = Run()
        with session:
            while session.tick < steps and (not budget or meter.spent < budget):
                acts = agents_from <= session.tick < (agents_until or steps)
                acting = chosen if acts else {}
                wish = cut if session.tick == cut_at else ""
                batch = found.batch(session.generators["data"].generator_at(session.tick), size)
                loss = _step(session, batch)
                meter.step(made, batch[0])
                run.losses.append((float(session.tick), float(loss)))
                with session.boundary(loss, batch=batch) as boundary:
                    if boundary.rolled_back:
                        run.rollbacks += 1
                        continue
                    for agent in acting.values():
                        boundary.submit(*agent.propose(boundary.observation))
                    if wish:
                        _cut(boundary, wish, found, probing)
                run.changes += [Change.of(session.tick - 1, r) for r in boundary.records]
            run.accuracy, run.loss = judged(made, found)
            run.cost, run.per_step = meter.spent, meter.per_step
            run.parameters = sum(p.numel() for p in made.parameters())
        return run


def _made(
    options: Mapping[str, Mapping[str, Any]], data: Data, probing: Probing, margin: float
) -> dict[str, RuleAgent]:
    """The agents by name; Emrakul probes on the part of the data that is there for it."""
    made: dict[str, RuleAgent] = {}
    for name, own in sorted(options.items()):  # a log does not keep the order of keys
        if name == "emrakul":
            made[name] = Emrakul(held_out=probing.held_out(data, margin), **own)
        else:
            made[name] = Tamiyo(**own)
    return made


def _cut(boundary: Boundary, wish: str, data: Data, probing: Probing) -> None:
    """Someone removes a region by hand: any rise of the loss below `_RASH` is harmless to them."""
    phages = boundary.session.model.anatomy.phages.values()
    free = [phage.id for phage in phages if phage.bypassable]
    free = [one for one in free if not any(other.startswith(f"{one}.") for other in free)]
    swept = boundary.sweep(free, probing.swept(data), loss=probing.loss)
    ranked = [line.target for line in swept if not line.refused]
    target = ranked[-1 if wish == "most" else 0]
    boundary.probe(target, probing.batches(data), loss=probing.loss, rule=_RASH)
    boundary.submit(Lyse(target=target))


def _step(session: Session, batch: Batch) -> torch.Tensor:
    session.optimizer.zero_grad()
    loss = cross_entropy(session.model, batch)
    torch.autograd.backward(loss)
    session.optimizer.step()
    session.schedulers[0].step()
    return loss.detach()


def judged(model: Model, data: Data, most: int = 512) -> tuple[float, float]:
    """Accuracy and mean loss on the test part (its first `most` items)."""
    inputs, labels = (part[:most] for part in data.test)
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(inputs).flatten(0, -2)
        accuracy = (logits.argmax(-1) == labels.flatten()).double().mean()
        loss = functional.cross_entropy(logits, labels.flatten())
    model.train(training)
    return float(accuracy), float(loss)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: the same bits on any number of cores, and faster for small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
