"""Probes: what a model loses without a part, measured on held-out batches before anything goes.

The awake and the sedated model see the same batch with the same random numbers, in evaluation mode
and without gradients; the differences of their losses are judged after each batch
(`esper.ecology.betting`). Both are copies that share the live model's parameters: its graph,
modes, compiled code and buffers are never touched.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from esper.ecology.betting import Judgement, Rule, judge
from esper.errors import UsageError
from esper.live.checkpoint import capture_random, restore_random
from esper.manager import PassManager
from esper.propose import NoteProbe, Sedate

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.records import Record

# (model, batch) -> loss; it must call the model that it is given.
Loss = Callable[[Any, Any], "float | torch.Tensor"]
Outcome = Literal["harmful", "harmless", "undecided", "refused"]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        target, units: what was sedated.
        outcome: harmful, harmless, undecided, or refused where the contract forbade the probe.
        reason: one sentence.
        code: of the rule that refused it.
        change, error: mean paired change of the loss and its standard error.
        awake: mean loss of the awake model on the same batches.
        batches: how many were used.
        figures: evidence for either claim, clipped differences.
        record: what became of the note in the ledger, if one was made.
    """

    target: str
    units: tuple[int, ...]
    outcome: Outcome
    reason: str
    code: str = ""
    change: float = 0.0
    error: float = 0.0
    awake: float = 0.0
    batches: int = 0
    figures: dict[str, float | int] = field(default_factory=dict)
    record: Record | None = None

    def note(self, proposer: str) -> NoteProbe:
        """The proposal that writes the finding into the ledger."""
        assert self.outcome != "refused"
        return NoteProbe(
            target=self.target,
            units=self.units,
            outcome=self.outcome,
            change=self.change,
            error=self.error,
            batches=self.batches,
            proposer=proposer,
            evidence={**self.figures},
        )


@dataclass(frozen=True)
class Swept:
    """One line of an ablation sweep: the paired change of the loss without a target."""

    target: str
    units: tuple[int, ...]
    change: float
    error: float
    batches: int
    refused: str = ""


class Ward:
    """Two copies of a model that share its parameters; targets are sedated on one of them.

    Costs a copy of the graph and of the buffers each. Use it while the model does not change.
    """

    def __init__(self, model: Model) -> None:
        self.awake, self.patient = _sharing(model), _sharing(model)
        self._manager = PassManager(self.patient, verify="none")
        self._calls = 0
        for copied in (self.awake, self.patient):
            copied.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._calls += 1

    @contextmanager
    def sedated(self, proposal: Sedate) -> Iterator[Record]:
        """The patient sleeps inside; its record says whether it could be sedated."""
        with self._manager.transaction() as transaction:
            record = self._manager.apply(proposal)
            try:
                yield record
            finally:
                transaction.roll_back()

    def losses(self, batch: Any, loss: Loss) -> tuple[float, float]:
        """Awake and sedated, with the same random numbers."""
        state = capture_random()
        awake = self._loss(self.awake, batch, loss)
        restore_random(state)
        return awake, self._loss(self.patient, batch, loss)

    def _loss(self, model: Model, batch: Any, loss: Loss) -> float:
        calls = self._calls
        with torch.no_grad():
            value = loss(model, batch)
        if self._calls == calls:
            raise UsageError(
                "the loss of a probe did not call the model that it was given: "
                "loss=lambda model, batch: criterion(model(batch[0]), batch[1])"
            )
        return float(value)


def run(
    ward: Ward, proposal: Sedate, batches: Iterable[Any], loss: Loss, rule: Rule
) -> ProbeResult:
    """Sedate, compare batch by batch, stop as soon as the rule decides.

    Global random generators are afterwards where they were, whatever batches and models drew.

    Args:
        ward: of the model.
        proposal: what is sedated; its refusal is the outcome.
        batches: held out; no more are drawn than needed.
        loss: of a model on a batch.
        rule: when to stop.

    Raises:
        UsageError: the loss did not call its model.
    """
    differences: list[float] = []
    awake: list[float] = []
    reason = ""
    with _same_random(), ward.sedated(proposal) as record:
        if record.kind != "passed":
            return ProbeResult(
                proposal.target, proposal.units, "refused", record.reason, record.code
            )
        found = judge(differences, rule)
        for batch in batches:
            before, after = ward.losses(batch, loss)
            if not math.isfinite(before):
                reason = f"the awake model's loss is {before} on batch {len(awake)}: "
                break
            awake.append(before)
            differences.append(after - before)
            found = judge(differences, rule)
            if found.outcome != "undecided" or len(differences) >= rule.most:
                break
    return ProbeResult(
        proposal.target,
        proposal.units,
        found.outcome,
        reason + _sentence(found, rule),
        change=found.mean,
        error=found.error,
        awake=statistics.fmean(awake) if awake else 0.0,
        batches=found.batches,
        figures={
            "margin": rule.margin,
            "error_probability": rule.error,
            "evidence_harmful": found.harmful,
            "evidence_harmless": found.harmless,
            "clipped": found.clipped,
        },
    )


def sweep(
    ward: Ward, proposals: Sequence[Sedate], batches: Iterable[Any], loss: Loss
) -> list[Swept]:
    """Each target in turn on the same few batches; the least missed comes first.

    A diagnostic: it decides nothing and leaves no evidence.
    """
    held = list(batches)
    done: list[Swept] = []
    with _same_random():
        for proposal in proposals:
            state = capture_random()
            with ward.sedated(proposal) as record:
                if record.kind != "passed":
                    done.append(not_swept(proposal, record.reason))
                    continue
                pairs = [ward.losses(batch, loss) for batch in held]
            restore_random(state)
            changes = [after - before for before, after in pairs]
            spread = statistics.stdev(changes) if len(changes) > 1 else 0.0
            error = spread / math.sqrt(max(len(changes), 1))
            mean = statistics.fmean(changes) if changes else 0.0
            mean = math.inf if math.isnan(mean) else mean
            done.append(Swept(proposal.target, proposal.units, mean, error, len(changes)))
    return sorted(done, key=lambda s: (s.change, s.target, s.units))


def not_swept(proposal: Sedate, reason: str) -> Swept:
    """The line of a target that could not be sedated."""
    return Swept(proposal.target, proposal.units, math.inf, 0.0, 0, reason)


def _sentence(found: Judgement, rule: Rule) -> str:
    return (
        f"{found.outcome}: the loss changes by {found.mean:+.4g} (standard error "
        f"{found.error:.2g}) on {found.batches} batches, against a margin of {rule.margin:g}"
    )


def _sharing(model: Model) -> Model:
    """A copy in evaluation mode with the same parameter objects."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared).eval()


@contextmanager
def _same_random() -> Iterator[None]:
    state = capture_random()
    try:
        yield
    finally:
        restore_random(state)
