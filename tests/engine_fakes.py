"""A chain of layers, passes that cut it, and a judge that is told what pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

import esper
from esper.engine import Engine
from esper.errors import UsageError
from esper.instruments.base import Instrument
from esper.ir.model import Model
from esper.judge import Judge, Judgement
from esper.manager import PassManager
from esper.passbase import Context, Pass, Proposals, Remark
from esper.pipeline import parse, units
from esper.propose import PruneUnits, SelectBackend
from esper.records import Record

LAYERS = 4
WIDTH = 8


class Chain(nn.Module):
    """Four hidden layers of eight units each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS - 1))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        out: Tensor = self.head(x)
        return out


AXES = ("axis:stem/neurons", *(f"axis:hidden.{i}/neurons" for i in range(LAYERS - 1)))


def chain() -> Model:
    return esper.trace(Chain().eval(), (torch.randn(2, 3),))


def cut_axes(model: Model) -> set[int]:
    """Numbers of the layers that lost units."""
    axes = model.anatomy.axes
    return {i for i, name in enumerate(AXES) if name in axes and axes[name].size < WIDTH}


@dataclass(frozen=True)
class CutOne(Pass):
    """Proposes to cut one unit of every axis, in order."""

    name: ClassVar[str] = "cut-one"
    unit: int = 0

    def propose(self, model: Model, context: Context) -> Proposals:
        for axis in AXES:
            record = yield PruneUnits(axis=axis, units=(self.unit,), proposer=self.name)
            assert record is not None
            assert record.kind == "passed"


@dataclass(frozen=True)
class CutShare(Pass):
    """Cuts a share of the first axis."""

    name: ClassVar[str] = "cut-share"
    ratio: float = 0.5

    def propose(self, model: Model, context: Context) -> Proposals:
        count = int(self.ratio * WIDTH)
        if count:
            yield PruneUnits(axis=AXES[0], units=tuple(range(count)))


@dataclass(frozen=True)
class Mend(Pass):
    """A repair pass that only remarks; counts its runs."""

    name: ClassVar[str] = "mend"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "repair"
    runs: ClassVar[list[int]] = []

    def propose(self, model: Model, context: Context) -> Proposals:
        self.runs.append(len(cut_axes(model)))
        yield Remark("analysis", "mended", "looked at the model")


@dataclass(frozen=True)
class Silent(Pass):
    """Proposes nothing."""

    name: ClassVar[str] = "silent"

    def propose(self, model: Model, context: Context) -> Proposals:
        yield from ()


@dataclass(frozen=True)
class Choose(Pass):
    """Proposes another backend."""

    name: ClassVar[str] = "choose"

    def propose(self, model: Model, context: Context) -> Proposals:
        yield SelectBackend(backend="inductor")


@dataclass(frozen=True)
class Breaks(Pass):
    """Cuts, then raises."""

    name: ClassVar[str] = "breaks"

    def propose(self, model: Model, context: Context) -> Proposals:
        yield PruneUnits(axis=AXES[1], units=(2,))
        raise UsageError("breaks needs something that was not given")


TABLE: dict[str, type[Pass]] = {p.name: p for p in (CutOne, CutShare, Mend, Silent, Choose, Breaks)}


@dataclass
class FakeJudge:
    """Decides by a function of (baseline, candidate); remembers what it was asked."""

    decide: Callable[[Model, Model], Judgement]
    quality_of: Callable[[Model], Judgement] | None = None
    gate: Any = "fake"
    asked: list[tuple[set[int], set[int], tuple[str, str], bool]] = field(default_factory=list)

    @property
    def quality(self) -> Any:
        return self.quality_of

    def judge_quality(self, candidate: Model) -> Judgement:
        assert self.quality_of is not None
        return self.quality_of(candidate)

    def judge(
        self, baseline: Model, candidate: Model, backends: tuple[str, str], *, lossy: bool
    ) -> Judgement:
        self.asked.append((cut_axes(baseline), cut_axes(candidate), backends, lossy))
        return self.decide(baseline, candidate)


YES = Judgement(True, "accepted", "1.20x", {"speedup": 1.2})
NO = Judgement(False, "gate-reject", "0.99x", {"speedup": 0.99})


def pays(layers: set[int]) -> Callable[[Model, Model], Judgement]:
    """Accepts a candidate when it newly cuts at least one layer and only layers that pay."""

    def decide(baseline: Model, candidate: Model) -> Judgement:
        new = cut_axes(candidate) - cut_axes(baseline)
        return YES if new and new <= layers else NO

    return decide


class Settled(Instrument):
    """Remembers the last word on every proposal."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def settled(self, model: Model, record: Record) -> None:
        self.records.append(record)


def engine(judge: FakeJudge, model: Model | None = None, **options: Any) -> Engine:
    manager = PassManager(model or chain(), instruments=[Settled()])
    return Engine(manager, Context(), cast(Judge, judge), **options)


def run(made: Engine, text: str, table: dict[str, type[Pass]] | None = TABLE) -> list[Record]:
    for unit in units(parse(text, table)):
        made.run_unit(unit)
    (settled,) = made.stack.instruments
    assert isinstance(settled, Settled)
    assert settled.records == made.records  # observers hear the last word on everything, once
    return made.records


def kinds(records: Sequence[Record]) -> dict[str, list[int]]:
    """Layers by kind of their record."""
    found: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record.proposal, PruneUnits):
            found.setdefault(record.kind, []).append(AXES.index(record.proposal.axis))
    return found
