"""Run inner passes several times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from esper.passbase import Pass


@dataclass(frozen=True)
class Repeat(Pass):
    """Run the inner passes n times: many small cuts, each repaired, beat one large one.

    Each round proposes against the model that the rounds before it left, as in iterative pruning
    (Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015).
    """

    name: ClassVar[str] = "repeat"
    nests: ClassVar[bool] = True

    n: int = field(default=2, metadata={"doc": "rounds, at least 1"})

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, not {self.n}")

    def rounds(self) -> int:
        """How many times the inner passes run."""
        return self.n
