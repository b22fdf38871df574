"""The table of storyboards, and what they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.demo.page import Page


@dataclass(frozen=True)
class Setting:
    """How a storyboard runs.

    Attributes:
        folder: for logs; the page goes there too.
        short: fewer steps and smaller models.
        seeds: paired seeds; 0 takes the stage's own number.
        steps: of a run; 0 takes the stage's own number.
        data: folder of images, "" for scikit-learn's digits.
        first: the first of the paired seeds.
        progress: `progress(done, total, what)`.
    """

    folder: Path
    short: bool = False
    seeds: int = 0
    steps: int = 0
    data: str = ""
    first: int = 0
    progress: Callable[[int, int, str], None] = lambda *_: None

    def numbers(self, seeds: int) -> range:
        """So many seeds."""
        return range(self.first, self.first + seeds)

    def log(self, name: str) -> Path:
        """The path of a new log; earlier ones stay."""
        path, number = self.folder / f"{name}.esperlog", 1
        while path.exists():
            number += 1
            path = self.folder / f"{name}-{number}.esperlog"
        return path


def stages() -> Mapping[str, Callable[[Setting], Page]]:
    """The storyboards by name."""
    from esper.demo import stage0, stage1, stage2, stage3

    return {"stage0": stage0.run, "stage1": stage1.run, "stage2": stage2.run, "stage3": stage3.run}


NAMES = ("stage0", "stage1", "stage2", "stage3")
