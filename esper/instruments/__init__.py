"""Observers of a run: timing, printing, dumps, bisection, remarks, counts and progress."""

from __future__ import annotations

from esper.instruments.base import Instrument, Phase, Stack
from esper.instruments.bisect import Bisect
from esper.instruments.dump import Dump
from esper.instruments.printing import Printing
from esper.instruments.progress import Progress
from esper.instruments.remarks import Remarks
from esper.instruments.stats import Stats
from esper.instruments.timing import Timing

__all__ = [
    "Bisect",
    "Dump",
    "Instrument",
    "Phase",
    "Printing",
    "Progress",
    "Remarks",
    "Stack",
    "Stats",
    "Timing",
]
