"""The one training program of all storyboards: a session with agents, replayable from its log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from esper.agents import Emrakul, HeldOut, Tamiyo
from esper.demo.data import Data, images, text
from esper.demo.hosts import image_host, text_host
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
    from esper.records import Record

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
_SWEPT = 4  # batches of a sweep
_RASH = StoppingRule(margin=20.0, error=0.3)
_PROBED = 48  # batches that a probe may take at most
_TRAINING = 3  # a step costs about three forward passes


@dataclass(frozen=True)
class Change:
    """What became of one proposal."""

    tick: int
    type: str
    target: str
    proposer: str
    kind: str
    code: str


@dataclass
class Run:
    """What a training run gave.

    Attributes:
        accuracy, loss: on the test part, at the end.
        cost: of training, in 1e9 multiply-accumulates.
        per_step: cost of the last step.
        parameters: at the end.
        losses: (tick, loss of the training batch).
        changes: what became of each proposal, in order.
        rollbacks: of the governor.
    """

    accuracy: float = math.nan
    loss: float = math.nan
    cost: float = 0.0
    per_step: float = 0.0
    parameters: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    rollbacks: int = 0

    @property
    def churn(self) -> int:
        """Structural changes that were committed."""
        return sum(change.kind == "passed" and change.type in STRUCTURAL for change in self.changes)

    @property
    def failed(self) -> bool:
        """Whether the run broke."""
        broken = any(change.kind == "failure" for change in self.changes)
        return broken or not math.isfinite(self.loss)


#: Proposals that change what is computed; probes and the ledger's entries do not.
STRUCTURAL = frozenset(
    {"plant-seed", "advance-seed", "cull-seed", "widen-units", "lyse", "forget-scar", "drop-region"}
)


class CostMeter:
    """Adds up what training costs; a structure is counted once."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.per_step = 0.0
        self._key: object = None

    def step(self, model: Model, inputs: torch.Tensor) -> None:
        """One more step on a batch like this."""
        key = (len(model.history), tuple(inputs.shape))
        if key != self._key:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(inputs)
            self._key, self.per_step = key, _TRAINING * counter.get_total_flops() / 2e9
        self.spent += self.per_step

    def state_dict(self) -> dict[str, Any]:
        """What was spent."""
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.spent, self._key = float(state["spent"]), None


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
    model: dict[str, int] | None = None,
    agents: dict[str, dict[str, Any]] | None = None,
    agents_from: int = 0,
    cut: str = "",
    cut_at: int = 0,
    terms: dict[str, float] | None = None,
    margin: float = 0.02,
    keyframes_every: int = 0,
) -> Run:
    """Train a host with AdamW at a constant rate.

    Args:
        host: `image` or `text`.
        data: folder of images, see `esper.demo.data.images`.
        seed: of weights, batches and agents.
        steps: how many, unless `budget` ends it.
        budget: cost at which training ends; 0: only `steps` do.
        size: of a batch.
        rate: learning rate.
        model: further arguments of the host, such as its width.
        agents: name -> options of the agents that act at boundaries.
        agents_from: tick from which they act.
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
        chosen = _made(options, found, size, margin)
        calls = {name: Call.of(type(a), **options[name]) for name, a in chosen.items()}
        meter = CostMeter()
        session = Session(
            made,
            torch.optim.AdamW(made.parameters(), lr=rate),
            recorder=recorder,
            recording=Recording(agents=calls, keyframes_every=keyframes_every),
            generators=Generators(seed),
            stateful={"meter": meter},
            # The governor would take back what someone cuts in spite of the loss.
            governor=None if cut else Governor(),
            terms=Terms.model_validate(terms or {}),
            lifecycle=Lifecycle((_GERMINATE, BLENDED, PROBATION)),
            signals_every=10,
        )
        run = Run()
        with session:
            while session.tick < steps and (not budget or meter.spent < budget):
                acting = chosen if session.tick >= agents_from else {}
                wish = cut if session.tick == cut_at else ""
                _step(session, found, meter, acting, run, size, wish)
            run.accuracy, run.loss = judged(made, found)
            run.cost, run.per_step = meter.spent, meter.per_step
            run.parameters = sum(p.numel() for p in made.parameters())
        return run


def _made(
    options: Mapping[str, Mapping[str, Any]], data: Data, size: int, margin: float
) -> dict[str, RuleAgent]:
    """The agents by name; Emrakul probes on the part of the data that is there for it."""
    made: dict[str, RuleAgent] = {}
    for name, own in sorted(options.items()):  # a log does not keep the order of keys
        if name == "emrakul":
            held = HeldOut(_batches(data, size), _probe_loss, StoppingRule(margin=margin))
            made[name] = Emrakul(held_out=held, **own)
        else:
            made[name] = Tamiyo(**own)
    return made


def _batches(data: Data, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What probes measure on."""
    inputs, labels = (torch.split(part, size) for part in data.probe)
    return list(zip(inputs, labels, strict=True))[:_PROBED]


def _cut(boundary: Boundary, wish: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Someone removes a region by hand: any rise of the loss below `_RASH` is harmless to them."""
    phages = boundary.session.model.anatomy.phages.values()
    free = [phage.id for phage in phages if phage.bypassable]
    free = [one for one in free if not any(other.startswith(f"{one}.") for other in free)]
    swept = boundary.sweep(free, batches[:_SWEPT], loss=_probe_loss)
    ranked = [line.target for line in swept if not line.refused]
    target = ranked[-1 if wish == "most" else 0]
    boundary.probe(target, batches, loss=_probe_loss, rule=_RASH)
    boundary.submit(Lyse(target=target))


def _probe_loss(model: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return loss_of(model, *batch)


def _step(
    session: Session,
    data: Data,
    meter: CostMeter,
    agents: Mapping[str, RuleAgent],
    run: Run,
    size: int,
    cut: str,
) -> None:
    inputs, labels = data.batch(session.generators["data"].generator_at(session.tick), size)
    session.optimizer.zero_grad()
    loss = loss_of(session.model, inputs, labels)
    torch.autograd.backward(loss)
    session.optimizer.step()
    meter.step(session.model, inputs)
    run.losses.append((float(session.tick), float(loss.detach())))
    with session.boundary(loss, batch=(inputs, labels)) as boundary:
        if boundary.rolled_back:
            run.rollbacks += 1
            return
        for agent in agents.values():
            boundary.submit(*agent.propose(boundary.observation))
        if cut:
            _cut(boundary, cut, _batches(data, size))
    run.changes += [_change(session.tick - 1, record) for record in boundary.records]


def _change(tick: int, record: Record) -> Change:
    proposal = record.proposal
    assert proposal is not None
    target = proposal.targets[0] if proposal.targets else ""
    return Change(tick, proposal.type, target, proposal.proposer, record.kind, record.code)


def loss_of(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, over all positions where there are several."""
    return functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())


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
