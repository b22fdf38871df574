"""Find the strongest setting of inner passes that the quality budget admits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from esper.passbase import Pass


@dataclass(frozen=True)
class Search(Pass):
    """Bisect the ratio of the inner passes for the largest cut within the quality budget.

    Every step runs the inner passes on the model as it was, with their `ratio` replaced, and
    measures quality; the last admissible one is kept and goes to the gate. With a target
    speed-up, the search stops at the smallest ratio that reaches it.
    """

    name: ClassVar[str] = "search"
    nests: ClassVar[bool] = True
    searches: ClassVar[bool] = True

    steps: int = field(default=5, metadata={"doc": "ratios tried, at least 1"})
    low: float = field(default=0.0, metadata={"doc": "largest ratio known to be harmless"})
    high: float = field(default=0.8, metadata={"doc": "largest ratio to consider"})

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not 0 <= self.low < self.high < 1:
            raise ValueError("low and high must satisfy 0 <= low < high < 1")
