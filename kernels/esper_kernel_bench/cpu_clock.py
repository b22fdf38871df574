"""Time on a CPU: one call a visit, weights cold, activations warm.

One thread is timed by the processor time that it gets, several by the clock on the wall. Where no
thread waits for another the two agree on a quiet machine, and on a busy one the first leaves out
when the system let others run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.gate.environment import last_level_cache
from esper_kernel_bench.contender import Call

_SHARE = 4  # at most one part in so many of the free memory holds weights


class CpuTimed:
    """See `timing.Timed`."""

    def __init__(self, calls: Sequence[Call], x: Tensor, now: Callable[[], float]) -> None:
        self._calls = calls
        self._now = now
        self._source = x
        self._x = torch.empty_like(x)
        self._next = 0
        self._output: Any = None
        for _ in calls:  # what repacks a weight does so when it first meets it
            self.seconds()
        self.warm = self.seconds()

    def seconds(self) -> float:
        # The layer before would just have written the input, and the weights were last read a
        # whole rotation ago.
        self._x.copy_(self._source)
        call = self._calls[self._next]
        self._next = (self._next + 1) % len(self._calls)
        started = self._now()
        self._output = call(self._x)
        return self._now() - started

    def output(self) -> Any:
        return self._output


class CpuClock:
    """See `timing.Clock`. All contenders together rotate through twice the last-level cache."""

    device = "cpu"
    alone = False

    def __init__(self) -> None:
        self.rotated = min(2 * last_level_cache(), _free_memory() // _SHARE)
        alone = torch.get_num_threads() == 1
        self.kind = "processor time of the one thread" if alone else "wall clock"
        self._now = time.thread_time if alone else time.perf_counter

    def prepare(self, calls: Sequence[Call], x: Tensor) -> CpuTimed:
        return CpuTimed(calls, x, self._now)


def _free_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that are available; where Linux does not tell, 4 GiB."""
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 2**32
