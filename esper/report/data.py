"""What a report shows, as plain data with a JSON round trip."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from esper.records import Record

Outcome = Literal["accept", "reject", "ambiguous"]
PHASES = ("propose", "plan", "apply", "verify", "gate", "quality")
"""Phases of a pass in the order in which they run."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class AxisRow(_Plain):
    """One axis of a model.

    Attributes:
        id: `axis:<path>/<kind>`.
        kind: heads, neurons, channels, embedding, ...
        size: number of units.
        units: birth numbers by position, given only for axes few units long.
        frozen: why no unit may be cut, or None.
        lossy: why a cut changes what stays, or None.
        modules: dotted paths of the modules that hold the units, in order.
    """

    id: str
    kind: str
    size: int
    units: tuple[int, ...] = ()
    frozen: str | None = None
    lossy: str | None = None
    modules: tuple[str, ...] = ()


class ModelFacts(_Plain):
    """Size and anatomy of a model; `layers` counts operations that read a parameter."""

    parameters: int
    bytes: int
    layers: int
    operations: int
    axes: tuple[AxisRow, ...] = ()


class VerdictRow(_Plain):
    """One verdict of the gate. Times are medians of one step, in milliseconds.

    Attributes:
        label: what was compared with the model before it.
        p: p-value of the test behind the verdict.
        rounds: pairs (or processes) measured.
    """

    label: str
    outcome: Outcome
    speedup: float
    lower: float | None = None
    upper: float | None = None
    p: float | None = None
    rounds: int | None = None
    baseline_backend: str = ""
    candidate_backend: str = ""
    baseline_ms: float | None = None
    candidate_ms: float | None = None
    reason: str = ""


class Quality(_Plain):
    """The user's metric (higher is better); `floor` is the least value that the budget admits."""

    metric: str = "quality"
    before: float
    after: float | None = None
    floor: float | None = None


class Point(_Plain):
    """One candidate in the plot of quality against speed."""

    label: str
    speedup: float
    quality: float
    lower: float | None = None
    upper: float | None = None
    accepted: bool


class PassTime(_Plain):
    """Seconds that a pass spent, by phase (see `PHASES`)."""

    pass_name: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """All phases together, in seconds."""
        return sum(self.seconds.values())


class ReportData(_Plain):
    """Everything on the page.

    Attributes:
        command: the command line, or empty when called from Python.
        environment: device, CPU, library versions, settings: label -> value.
        after: None when there is no changed model.
        records: what became of every proposal.
        verdicts: every comparison that the gate made.
        final: the verdict on the whole (model returned against model given); None if unmeasured.
        exact: whether all that was kept is exact; None when nothing was committed.
        finetuned: whether weights of something that was kept were trained.
        notes: limits and remarks, one sentence each.
    """

    title: str
    command: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    before: ModelFacts
    after: ModelFacts | None = None
    records: tuple[Record, ...] = ()
    verdicts: tuple[VerdictRow, ...] = ()
    final: VerdictRow | None = None
    quality: Quality | None = None
    points: tuple[Point, ...] = ()
    timing: tuple[PassTime, ...] = ()
    exact: bool | None = None
    finetuned: bool = False
    notes: tuple[str, ...] = ()
