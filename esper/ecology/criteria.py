"""Gates of the lifecycle: what must hold before a seed goes from one stage to the next.

Figures are measured by whoever proposes (`esper.live.lifecycle`, an agent) and travel as the
proposal's evidence; the criteria say what they must be.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from esper.ir.ecology import Stage

Comparison = Literal[">=", "<="]
_COMPARE: Mapping[Comparison, Callable[[float, float], bool]] = MappingProxyType(
    {">=": operator.ge, "<=": operator.le}
)


@dataclass(frozen=True)
class Criterion:
    """One figure and its limit; a figure that is not a number meets no limit.

    Attributes:
        figure: its name in the evidence.
        compare, limit: `figure >= limit` or `figure <= limit`.
        meaning: what it is, in words.
        fatal: whether a seed that fails it is culled; otherwise it waits.
    """

    figure: str
    compare: Comparison
    limit: float
    meaning: str
    fatal: bool = False

    def met(self, value: float) -> bool:
        """Whether a value meets the limit."""
        return _COMPARE[self.compare](value, self.limit)

    def text(self) -> str:
        """`ticks >= 10`."""
        return f"{self.figure} {self.compare} {self.limit:g}"


@dataclass(frozen=True)
class StageGate:
    """The way from one stage to another.

    Attributes:
        name: for the record.
        before, to: stages.
        criteria: all must be met.
        patience: ticks in a stage after which a seed that cannot pass is culled; 0 waits for ever.
    """

    name: str
    before: Stage
    to: Literal["blending", "holding", "committed"]
    criteria: tuple[Criterion, ...]
    patience: int = 0

    def failing(self, figures: Mapping[str, float]) -> list[Criterion]:
        """Criteria whose figures are there and do not meet them."""
        return [c for c in self.criteria if c.figure in figures and not c.met(figures[c.figure])]

    def missing(self, figures: Mapping[str, float]) -> list[Criterion]:
        """Criteria whose figures are not there."""
        return [c for c in self.criteria if c.figure not in figures]

    def passes(self, figures: Mapping[str, float]) -> bool:
        """Whether every figure is there and meets its criterion."""
        return not self.missing(figures) and not self.failing(figures)


GERMINATE = StageGate(
    "germinate",
    "incubating",
    "blending",
    (
        Criterion("ticks", ">=", 10, "ticks behind the host"),
        Criterion(
            "gradient-finite", ">=", 1, "whether every gradient norm so far was finite", fatal=True
        ),
        Criterion("gradient-trend", "<=", 1.5, "recent gradient norm over that before"),
    ),
    # Behind the host a seed never sees what its contribution would do: it goes on the way on which
    # the loss fell at first, and after too long comes in with far too much of it.
    patience=60,
)
BLENDED = StageGate(
    "blended",
    "blending",
    "holding",
    (Criterion("alpha", ">=", 1, "alpha, which has reached its end"),),
)
PROBATION = StageGate(
    "probation",
    "holding",
    "committed",
    (
        Criterion("alpha", ">=", 1, "alpha"),
        Criterion("ticks", ">=", 20, "ticks on probation"),
        Criterion(
            "loss-worse",
            "<=",
            0.02,
            "lower 95% bound of the paired change of the loss, relative to that before blending",
            fatal=True,
        ),
    ),
)
GATES: tuple[StageGate, ...] = (GERMINATE, BLENDED, PROBATION)


def gate(gates: tuple[StageGate, ...], before: str, to: str) -> StageGate | None:
    """The gate between two stages; None where nothing is asked."""
    return next((g for g in gates if (g.before, g.to) == (before, to)), None)
