"""What a clock is, whatever the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from esper_kernel_bench.contender import Call


class Timed(Protocol):
    """Calls of one contender on one input, warmed up."""

    warm: float
    """Seconds of a warm call before anything counts."""

    def seconds(self) -> float:
        """One visit: seconds a call, the next of the weights' copies first."""
        ...

    def output(self) -> Any:
        """What the last timed call returned."""
        ...


class Clock(Protocol):
    """Times calls on a device."""

    device: str
    kind: str
    """What is read, for the record."""
    rotated: int
    """Bytes of weights that must pass before a copy is read again."""
    alone: bool
    """Whether each contender rotates through so much by itself, or all of them together."""

    def prepare(self, calls: Sequence[Call], x: Tensor) -> Timed:
        """Warm up calls that differ only in their copy of the weights."""
        ...
