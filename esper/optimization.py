"""`esper.optimize`: a pipeline of passes over a model, with measured acceptance."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from esper.engine import Engine
from esper.errors import UsageError
from esper.instruments.base import Instrument, Stack
from esper.ir import kernels
from esper.ir.reference import masked_reference
from esper.judge import Judge, Judgement
from esper.manager import PassManager, Verify
from esper.passbase import Batch, Context
from esper.pipeline import Pipeline, parse, units
from esper.propose import PruneUnits
from esper.records import Record

if TYPE_CHECKING:
    from esper.gate.gate import Gate
    from esper.gate.verdict import Verdict
    from esper.ir.model import Model

Progress = Callable[[int, int, str], None]


@dataclass
class Result:
    """What `optimize` returns.

    Attributes:
        model: the changed model (a new object; the input model is as it was).
        baseline: the input model.
        records: one per proposal and remark, in order.
        judgements: (what was judged, judgement) in order, refused ones too.
        verdict: measurement of the whole change, input against result; None if unmeasured.
        backend: the backend on which the result was measured.
        quality: figures of the quality budget before and after, if there was one.
        finetuned: whether weights of something that was kept were trained by `finetune`.
    """

    model: Model
    baseline: Model
    pipeline: str
    records: list[Record]
    judgements: list[tuple[str, Judgement]]
    verdict: Verdict | None = None
    backend: str = "eager"
    quality: dict[str, Any] = field(default_factory=dict)
    finetuned: bool = False

    @property
    def committed(self) -> list[Record]:
        """Records of proposals that stayed."""
        return [r for r in self.records if r.kind == "passed"]

    @property
    def exact(self) -> bool:
        """Whether all that was kept is exact: then `model` equals `reference`."""
        return not self.finetuned and all(
            r.figures.get("tolerance") == "exact" for r in self.committed
        )

    @property
    def speedup(self) -> float | None:
        """Measured step time of the input over that of the result; None if unmeasured."""
        return None if self.verdict is None else self.verdict.speedup

    @cached_property
    def reference(self) -> Model:
        """The uncut model with every removed unit masked to zero.

        Units whose known constant moved into a bias are not masked: there the uncut model itself
        is the reference.
        """
        removed: dict[str, list[int]] = {}
        for record in self.committed:
            if isinstance(record.proposal, PruneUnits):
                folded = set(record.figures.get("folded_units", ()))
                units = [u for u in record.proposal.units if u not in folded]
                removed.setdefault(record.proposal.axis, []).extend(units)
        return masked_reference(self.baseline, {a: u for a, u in removed.items() if u})

    def summary(self) -> str:
        """A few lines for a person."""
        kinds = [r.kind for r in self.records if r.proposal is not None]
        before, after = self.baseline.nbytes(), self.model.nbytes()
        passed, missed = kinds.count("passed"), kinds.count("missed")
        failed = kinds.count("failure")
        lines = [
            f"{passed} proposals committed, {missed} refused, {failed} failed",
            f"parameters and buffers: {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB",
        ]
        if inside := kernels.sentence(self.model.graph):
            lines.append(inside)
        if self.quality:
            lines.append(str(self.quality["text"]))
        if self.verdict is not None:
            lines.append(f"step time {self.verdict.summary()}")
        elif self.committed:
            lines.append("step time was not measured")
        else:
            lines.append("the model is unchanged")
        return "\n".join(lines)


def optimize(
    model: Model,
    passes: str | Pipeline,
    *,
    gate: Gate | None = None,
    inputs: Any = None,
    data: Sequence[Batch] | None = None,
    evaluate: Callable[[Any], float] | None = None,
    max_loss: float | str = 0.01,
    finetune: Callable[[Any], None] | None = None,
    target_speedup: float | None = None,
    instruments: Sequence[Instrument] = (),
    verify: Verify = "incremental",
    seed: int = 0,
    max_trials: int = 6,
    progress: Progress | None = None,
) -> Result:
    """Run passes over a copy of a model and keep what pays.

    Args:
        model: a traced model; never changed.
        passes: pipeline text (`"prune{ratio=0.3},reconstruct"`) or a parsed pipeline.
        gate: measures every unit of the pipeline; None applies without measuring time.
        inputs: what is timed: (args, kwargs), or a list of (weight, args, kwargs); by default the
            inputs that the model was traced with.
        data: calibration batches [(args, kwargs), ...] for saliency, reconstruction and drift.
        evaluate: quality, higher is better; without it, drift of outputs on `data` is bounded.
        max_loss: largest loss of quality: 0.01 or "1%" relative, or "0.5 absolute"; see
            `esper.gate.quality`.
        finetune: called with the model after lossy changes, before they are judged.
        target_speedup: for `search`: stop at the smallest cut that reaches it.
        instruments: observers (timing, IR printing, dumps, bisection, remarks).
        verify: `incremental`, `full` (whole graph around every rewrite) or `none`.
        seed: for every random choice.
        max_trials: judgements that bisection may spend on one refused unit.
        progress: called as progress(done, total, what).

    Raises:
        UsageError: an option is wrong or a pass lacks what it needs.
        QualityError: `evaluate` raised, was not finite, or changed the model.
        GateError: a measurement failed.
    """
    from esper.gate.quality import QualityBudget

    pipeline = parse(passes) if isinstance(passes, str) else passes
    inputs = inputs if inputs is not None else model.example_inputs
    if gate is not None and inputs is None:
        raise UsageError("the gate needs example inputs: give --inputs (or inputs=...)")
    random.seed(seed)
    torch.manual_seed(seed)
    quality = None
    if evaluate is not None or data:
        quality = QualityBudget(evaluate=evaluate, max_loss=max_loss, data=data)
    stack = Stack(instruments)
    work = copy.deepcopy(model)
    manager = PassManager(work, verify=verify, instruments=stack)
    if gate is not None and gate.backend != "auto":
        manager.backend = gate.backend
    first_backend = manager.backend
    context = Context(
        inputs=_one(inputs),
        data=data,
        evaluate=evaluate,
        baseline=model,
        gate=gate,
        backend=first_backend,
        seed=seed,
        progress=progress or _quiet,
    )
    with ExitStack() as exits:
        launcher = None
        if gate is not None:
            from esper.gate.launcher import Launcher

            launcher = exits.enter_context(Launcher())

        def say(text: str) -> None:
            context.progress(-1, -1, text)

        judge = Judge(gate, inputs, quality, launcher, say)
        if quality is not None:
            quality.set_baseline(model)
        engine = Engine(
            manager,
            context,
            judge,
            finetune=finetune,
            max_trials=max_trials,
            target_speedup=target_speedup,
        )
        with stack.run(work, pipeline.text()):
            for unit in units(pipeline):
                engine.run_unit(unit)
        work.refresh()
        verdict = _whole(engine, model, first_backend)
        result = Result(
            model=work,
            baseline=model,
            pipeline=pipeline.text(),
            records=[r.model_copy(update={"number": i}) for i, r in enumerate(engine.records)],
            judgements=engine.judgements,
            verdict=verdict,
            backend=manager.backend,
            finetuned=engine.finetuned,
        )
        if quality is not None:
            result.quality = quality.judge(work).figures()
    return result


def _whole(engine: Engine, model: Model, first_backend: str) -> Verdict | None:
    """Input against result: one measurement, taken anew unless a single unit was the result."""
    accepted = [judgement for judgement in engine.accepted if judgement.verdict is not None]
    if len(accepted) < 2:
        return accepted[0].verdict if accepted else None
    backends = (first_backend, engine.manager.backend)
    whole = engine.judge.judge(model, engine.model, backends, lossy=False)
    if whole.verdict is None:
        reason = f"the whole change could not be measured: {whole.reason}"
        engine.records.append(Record(kind="analysis", code=whole.code, reason=reason))
    return whole.verdict


def _one(inputs: Any) -> Batch | None:
    """One (args, kwargs) out of whatever form the inputs have."""
    if inputs is None:
        return None
    from esper.gate.inputs import normalise

    calls, _ = normalise(inputs)
    return calls[0]


def _quiet(done: int, total: int, what: str) -> None:
    """No progress."""
