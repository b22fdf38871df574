"""Runs pipelines: units of passes are applied, judged, and kept, bisected or rolled back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from esper.errors import UsageError
from esper.instruments.base import Stack
from esper.judge import Judge, Judgement
from esper.manager import PassManager, Transaction
from esper.passbase import Context, Pass, Remark
from esper.pipeline import Item, Pipeline, Unit
from esper.records import Record

if TYPE_CHECKING:
    from esper.ir.model import Model

# Proposals of these types compute the same function: quality needs no measuring.
_PRESERVING = frozenset(
    "fold-constants eliminate-dead fuse-conv-bn select-backend lower-linear lower-gated-mlp "
    "lower-low-rank lower-attention-projections raise-kernel".split()
)


class Engine:
    """State of one `optimize` run.

    Args:
        manager: holds the working model.
        context: given to passes.
        judge: holds candidates against time and quality.
        finetune: called with the model after lossy changes, before they are judged.
        max_trials: judgements that bisection may spend on one unit.
        target_speedup: a search stops at the smallest ratio that reaches it.
    """

    def __init__(
        self,
        manager: PassManager,
        context: Context,
        judge: Judge,
        *,
        finetune: Callable[[Model], None] | None = None,
        max_trials: int = 6,
        target_speedup: float | None = None,
    ) -> None:
        self.manager = manager
        self.context = context
        self.judge = judge
        self.finetune = finetune
        self.max_trials = max_trials
        self.target_speedup = target_speedup
        self.records: list[Record] = []
        self.judgements: list[tuple[str, Judgement]] = []
        self.accepted: list[Judgement] = []  # those by which something was kept
        self.finetuned = False  # whether something was kept that was fine-tuned
        self._trials = 0
        self._touched: dict[int, frozenset[str]] = {}  # tensors, by identity of the proposal
        self._runs: list[tuple[Pass, list[int]]] = []  # passes of the unit and what they proposed

    @property
    def model(self) -> Model:
        """The working model."""
        return self.manager.model

    @property
    def stack(self) -> Stack:
        """The instruments."""
        return self.manager.instruments

    # -- units -----------------------------------------------------------------------------------

    def run_unit(self, unit: Unit) -> None:
        """Apply a unit, judge it, keep it whole, keep the parts that pay, or keep nothing."""
        try:
            self._run_unit(unit)
        finally:
            # Solved tensors wait until here, since bisection applies proposals again.
            self.model.payloads.clear()
            self._touched.clear()
            self._runs = []

    def _run_unit(self, unit: Unit) -> None:
        self._trials = 0
        committed = copy.deepcopy(self.model) if self.judge.gate is not None else self.model
        with self.manager.transaction() as transaction:
            try:
                records = self._items(unit.items, committed)
                for settle in (self._without_idle, self._without_losing_kernels):
                    records = settle(unit, records, transaction)
                passed = [r for r in records if r.kind == "passed"]
                if not passed:
                    self._settle(records)
                    return
                judgement = self._judge(committed, passed, unit.text())
                if judgement.accepted:
                    self._settle(_judged(r, judgement) for r in records)
                    return
            except BaseException:
                transaction.roll_back()
                raise
            transaction.roll_back()
            self._settle(r for r in records if r.kind != "passed")
            chosen = [r for r in passed if self._aim(r) != "repair"]
            self._bisect(unit, committed, chosen, judgement)

    def _bisect(
        self, unit: Unit, committed: Model, group: Sequence[Record], why: Judgement
    ) -> None:
        """A refused group is halved until what remains pays or is a single refused proposal."""
        bundles = self._bundles(unit, group)
        if unit.aim == "speed" and all(self._aim(record) == "prepare" for record in group):
            bundles = [list(group)]  # what nothing made use of is no faster in parts
        # What was found faster but not confirmed in time (gate-unconfirmed) is not halved: its
        # parts would be as short of time.
        repairable = len(bundles) > 1 and why.code in ("quality", "gate-reject", "gate-ambiguous")
        if not repairable or self._trials >= self.max_trials:
            self._settle(_refused(record, why) for record in group)
            return
        middle = len(bundles) // 2
        for part in (bundles[:middle], bundles[middle:]):
            half = [record for bundle in part for record in bundle]
            if self._trials >= self.max_trials:
                self._settle(_refused(record, why) for record in half)
                continue
            base = copy.deepcopy(self.model) if self.judge.gate is not None else committed
            with self.manager.transaction() as transaction:
                try:
                    records = self._again(half)
                    passed = [r for r in records if r.kind == "passed"]
                    judgement = self._judge(base, passed, f"{len(half)} proposals of {unit.text()}")
                except BaseException:
                    transaction.roll_back()
                    raise
                if judgement.accepted:
                    self._settle(_judged(r, judgement) for r in records)
                    continue
                transaction.roll_back()
            self._bisect(unit, committed, half, judgement)

    def _again(self, wanted: Iterable[Record]) -> list[Record]:
        """Some proposals of the unit, applied once more, with its repair passes where they were."""
        chosen = {id(record.proposal): record for record in wanted}
        runs, records = self._runs, list[Record]()
        for pass_, made in runs:
            if pass_.aim == "repair":
                records += self._pass(pass_) if records else []
                continue
            for before in (chosen[proposal] for proposal in made if proposal in chosen):
                assert before.proposal is not None
                record = self.manager.apply(before.proposal)
                records.append(record.model_copy(update={"pass_name": before.pass_name}))
        self._runs = runs  # repair passes have run again
        return records

    # -- what is prepared for kernels --------------------------------------------------------------

    def _without_idle(
        self, unit: Unit, records: list[Record], transaction: Transaction
    ) -> list[Record]:
        """The unit without what was prepared in vain, since no kernel reads it."""
        passed = [r for r in records if r.kind == "passed"]
        zeros, lowering, _ = _roles(unit)
        if self.judge.gate is None or not lowering:
            return records
        idle = [
            record
            for bundle in self._bundles(unit, [r for r in passed if self._aim(r) != "repair"])
            if not any(record.pass_name in lowering for record in bundle)
            for record in bundle
            if record.pass_name in zeros
        ]
        if not idle:
            return records
        transaction.roll_back()
        self._settle_remarks(records)
        self._settle(_idle(record) for record in idle)
        return self._again(_less(passed, idle))

    def _without_losing_kernels(
        self, unit: Unit, records: list[Record], transaction: Transaction
    ) -> list[Record]:
        """The unit without zeros and kernels, if the rest of it is as fast without them.

        Where another pass is faster by itself (integers), a unit that pays says nothing of them.
        """
        passed = [r for r in records if r.kind == "passed"]
        zeros, lowering, others = _roles(unit)
        kernels = [r for r in passed if r.pass_name in zeros | lowering]
        rest = _less(passed, kernels)
        if self.judge.gate is None or not zeros or not kernels:
            return records
        if not any(record.pass_name in others for record in rest):
            return records
        backends = (self.context.backend, self.manager.backend)
        whole = copy.deepcopy(self.model)
        transaction.roll_back()
        self._settle_remarks(records)
        records = self._again(rest)
        with self.stack.phase("gate"):
            found = self.judge.judge(self.model, whole, backends, lossy=False)
        self._trials += 1
        self.judgements.append((f"zeros and kernels of {unit.text()}", found))
        if found.accepted:
            transaction.roll_back()
            return self._again(passed)
        self._settle(_refused(record, found) for record in kernels)
        return records

    def _bundles(self, unit: Unit, group: Sequence[Record]) -> list[list[Record]]:
        """What stands or falls together: a weight that was prepared, and what made use of that.

        Where passes prepare others, proposals that touch a tensor in common belong together.
        """
        if all(step.judged_as() != "prepare" for step in unit.steps()):
            return [[record] for record in group]
        bundles: list[tuple[list[Record], set[str]]] = []
        for record in group:
            touched = set(self._touched.get(id(record.proposal), ()))
            joined: list[Record] = []
            for bundle in [b for b in bundles if b[1] & touched]:
                bundles.remove(bundle)
                joined += bundle[0]
                touched |= bundle[1]
            bundles.append(([*joined, record], touched))
        return [records for records, _ in bundles]

    def _settle_remarks(self, records: Iterable[Record]) -> None:
        """What is not applied again; repair passes run anew and say so themselves."""
        self._settle(r for r in records if r.kind != "passed" and self._aim(r) != "repair")

    def _settle(self, records: Iterable[Record]) -> None:
        for record in records:
            self.records.append(record)
            self.stack.settled(self.model, record)

    def _judge(self, committed: Model, passed: Sequence[Record], what: str) -> Judgement:
        self._trials += 1
        lossy = any(r.proposal is not None and r.proposal.type not in _PRESERVING for r in passed)
        trains = lossy and self.finetune is not None
        if trains:
            self._finetune()
        backends = (self.context.backend, self.manager.backend)
        with self.stack.phase("gate"):
            judgement = self.judge.judge(committed, self.model, backends, lossy=lossy)
        if judgement.accepted:
            self.context.backend = self.manager.backend
            self.accepted.append(judgement)
            self.finetuned |= trains
        self.judgements.append((what, judgement))
        return judgement

    def _finetune(self) -> None:
        assert self.finetune is not None
        saved = [(t, t.detach().clone()) for _, t in self.model.all_tensors()]
        gradients = [
            (p, None if p.grad is None else p.grad.clone()) for p in self.model.parameters()
        ]
        training = self.model.training

        def undo() -> None:
            for tensor, value in saved:
                tensor.data.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient

        self.manager.journal.add(undo)
        try:
            self.finetune(self.model)
        finally:
            self.model.train(training)

    # -- passes ----------------------------------------------------------------------------------

    def _items(self, items: Iterable[Item], committed: Model) -> list[Record]:
        records: list[Record] = []
        for item in items:
            if item.inner is None:
                records += self._pass(item.instance)
            elif item.instance.searches:
                records += self._search(item, item.inner, committed)
            else:
                for _ in range(item.instance.rounds()):
                    records += self._items(item.inner.items, committed)
        return records

    def _pass(self, pass_: Pass) -> list[Record]:
        """Pull proposals one by one; each is settled before the pass sees the next."""
        stack, records = self.stack, list[Record]()
        stack.before_pass(self.model, pass_)
        proposals = pass_.propose(self.model, self.context)
        answer: Record | None = None
        while True:
            try:
                with stack.phase("propose"):
                    wish = proposals.send(answer)
            except StopIteration:
                break
            if isinstance(wish, Remark):
                answer = _remark(wish, pass_)
                stack.after_proposal(self.model, pass_, answer)
            else:
                answer = self.manager.apply(wish, pass_)
                if answer.kind == "passed":
                    self._touched[id(answer.proposal)] = self.manager.touched
            records.append(answer)
        stack.after_pass(self.model, pass_, records)
        self._runs = [*self._runs, (pass_, [id(r.proposal) for r in records if r.kind == "passed"])]
        if not records:
            records.append(_remark(Remark("missed", "no-proposal", "nothing to propose"), pass_))
        return records

    def _search(self, item: Item, inner: Pipeline, committed: Model) -> list[Record]:
        """Bisect the ratio within the quality budget; leaves the best admissible one applied."""
        if self.judge.quality is None:
            raise UsageError("search needs a quality budget: give --eval or --data")
        options: Any = item.instance
        low, high = options.low, options.high
        best: float | None = None
        tried: dict[str, Any] = {}
        for step in range(options.steps):
            # A moderate cut first; `low` itself is harmless, says the caller.
            ratio = 0.3 if not step and low < 0.3 < high else (low + high) / 2
            self.context.progress(step, options.steps, f"searching, ratio {ratio:.3f}")
            runs = self._runs
            with self.manager.transaction() as transaction:
                try:
                    records = self._items(with_ratio(inner, ratio).items, committed)
                    with self.stack.phase("quality"):
                        found = self.judge.judge_quality(self.model)
                    fast = found.accepted and self._reaches(committed)
                finally:
                    transaction.roll_back()
                    self._runs = runs
            if not any(record.kind == "passed" for record in records):
                tried[f"{ratio:.4f}"] = "nothing to cut"
                low = ratio
                continue
            tried[f"{ratio:.4f}"] = found.figures.get("quality_after", found.accepted)
            if found.accepted and fast:
                best, high = ratio, ratio  # enough speed: look for a smaller cut
            elif found.accepted:
                best, low = (ratio if self.target_speedup is None else best), ratio
            else:
                high = ratio
        self.context.progress(options.steps, options.steps, "searching")
        reason = (
            f"ratio {best:.3f} is the best of {options.steps} within the quality budget"
            if best is not None
            else f"none of {options.steps} ratios cut anything within the quality budget"
            + (f" and the target of {self.target_speedup:g}x" if self.target_speedup else "")
        )
        kind: Any = "analysis" if best is not None else "missed"
        remark = _remark(Remark(kind, "search", reason, figures={"tried": tried}), item.instance)
        if best is None:
            return [remark]
        return [remark, *self._items(with_ratio(inner, best).items, committed)]

    def _reaches(self, committed: Model) -> bool:
        """Whether the working model reaches the target speed-up, by a short measurement."""
        if self.target_speedup is None or self.judge.gate is None:
            return False
        judgement = self.judge.judge(
            committed, self.model, (self.context.backend, self.manager.backend), lossy=False
        )
        return float(judgement.figures.get("speedup", 0.0)) >= self.target_speedup

    def _aim(self, record: Record) -> str:
        from esper.passbase import passes

        cls = passes().get(record.pass_name)
        return cls.aim if cls is not None else "speed"


def with_ratio(pipeline: Pipeline, ratio: float) -> Pipeline:
    """The pipeline with every `ratio` option replaced."""
    items = []
    for item in pipeline.items:
        instance = item.instance
        if any(f.name == "ratio" for f in dataclasses.fields(instance)):
            instance = dataclasses.replace(instance, ratio=ratio)  # type: ignore[call-arg]
        inner = with_ratio(item.inner, ratio) if item.inner is not None else None
        items.append(Item(instance, inner))
    return Pipeline(tuple(items))


def _remark(remark: Remark, pass_: Pass) -> Record:
    return Record(
        kind=remark.kind,
        code=remark.code,
        reason=remark.reason,
        node=remark.node,
        remedy=remark.remedy,
        figures=remark.figures,
        pass_name=pass_.name,
    )


def _judged(record: Record, judgement: Judgement) -> Record:
    if record.kind != "passed":
        return record
    return record.model_copy(
        update={
            "code": judgement.code,
            "reason": f"{record.reason}; {judgement.reason}",
            "figures": {**record.figures, **judgement.figures},
        }
    )


def _roles(unit: Unit) -> tuple[set[str], set[str], set[str]]:
    """Names of passes that prepare for kernels, that lower, and that are faster by themselves."""
    steps = list(unit.steps())
    return (
        {step.name for step in steps if step.for_kernels},
        {step.name for step in steps if step.lowers},
        {step.name for step in steps if step.judged_as() == "speed" and not step.lowers},
    )


def _less(records: Iterable[Record], gone: Iterable[Record]) -> list[Record]:
    """Records but for some, told apart by identity."""
    without = set(map(id, gone))
    return [record for record in records if id(record) not in without]


def _idle(record: Record) -> Record:
    return record.model_copy(
        update={
            "kind": "missed",
            "code": "no-kernel-for-it",
            "reason": f"{record.reason}; but no kernel makes use of it",
            "remedy": "see what lower-kernels says of the layer; another pattern may win",
        }
    )


def _refused(record: Record, why: Judgement) -> Record:
    remedy = {
        "quality": "cut less, add reconstruct or --finetune, or allow a larger --max-loss",
        "gate-reject": "a larger change, another backend or other shapes may pay",
        "gate-failed": "measure on a quieter machine, or on another backend",
        "gate-ambiguous": "measure longer (--budget-seconds) or on a quieter machine",
        "gate-unconfirmed": f"give --budget-seconds {why.figures.get('seconds_needed', 0):.0f}",
    }
    return record.model_copy(
        update={
            "kind": "missed",
            "code": why.code,
            "reason": why.reason,
            "remedy": remedy.get(why.code, ""),
            "figures": {**record.figures, **why.figures},
        }
    )
