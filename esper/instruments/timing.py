"""`--time-passes`: where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, get_args

from esper.instruments._output import table
from esper.instruments.base import Instrument, Phase

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.records import Record

OUTSIDE = "outside passes"
_PHASES: tuple[str, ...] = get_args(Phase)


class Timing(Instrument):
    """Seconds per pass and phase.

    A phase counts only its own time, not that of phases inside it, so a row adds up: `total` is
    the time inside the pass (outside any pass for the row `outside passes`), and `other` is what
    no phase claims. Several runs of a pass share one row.

    Args:
        clock: seconds from any origin.
    """

    name: ClassVar[str] = "timing"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._rows: dict[str, dict[str, float]] = {}
        self._runs: dict[str, int] = {}
        self._passes: list[str] = []
        self._phases: list[str] = []
        self._last: float | None = None

    def enter(self, model: Model, pipeline: str) -> None:
        self._last = self._clock()

    def exit(self, model: Model) -> None:
        self._spend()
        self._last = None
        self._passes.clear()
        self._phases.clear()

    def before_pass(self, model: Model, pass_: Pass) -> None:
        self._spend()
        self._passes.append(pass_.name)
        self._runs[pass_.name] = self._runs.get(pass_.name, 0) + 1

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        self._spend()
        self._passes.pop()

    def enter_phase(self, phase: Phase) -> None:
        self._spend()
        self._phases.append(phase)

    def exit_phase(self, phase: Phase) -> None:
        self._spend()
        self._phases.pop()

    def seconds(self) -> dict[str, dict[str, float]]:
        """Pass name -> `runs`, each phase, `other` and `total`, in order of first appearance."""
        result: dict[str, dict[str, float]] = {}
        for name, row in self._rows.items():
            phases = {phase: row.get(phase, 0.0) for phase in (*_PHASES, "other")}
            result[name] = {
                "runs": self._runs.get(name, 0),
                **phases,
                "total": sum(phases.values()),
            }
        return result

    def text(self) -> str:
        """A table, the slowest pass first."""
        columns = (*_PHASES, "other", "total")
        rows = sorted(self.seconds().items(), key=lambda item: -item[1]["total"])
        cells = [
            [name, str(row["runs"] or ""), *(f"{row[column]:.3f}" for column in columns)]
            for name, row in rows
        ]
        sums = [f"{sum(row[c] for _, row in rows):.3f}" for c in columns]
        head = ["seconds", "runs", *columns]
        return table(head, [*cells, ["all", "", *sums]])

    def _spend(self) -> None:
        """Book the time since the last event on the present pass and phase."""
        now = self._clock()
        if self._last is not None:
            row = self._rows.setdefault(self._passes[-1] if self._passes else OUTSIDE, {})
            phase = self._phases[-1] if self._phases else "other"
            row[phase] = row.get(phase, 0.0) + now - self._last
        self._last = now
