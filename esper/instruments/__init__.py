"""Observers of a run: timing, printing, dumps, bisection, remarks, counts and progress."""

from __future__ import annotations

from esper.instruments.base import Instrument, Phase, Stack

__all__ = ["Instrument", "Phase", "Stack"]
