"""Time on a GPU: CUDA graphs of several calls, weights cold, the L2 cache flushed before each."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from esper_kernel_bench.contender import Call

_cuda: Any = torch.cuda  # its events and streams are untyped
_LEAST = 200e-6  # seconds of a graph, so that its launch and the events do not count
_MOST = 256  # calls of a graph


class CudaTimed:
    """See `timing.Timed`: a graph of calls that goes round the copies of the weights."""

    def __init__(self, calls: Sequence[Call], x: Tensor, flush: Tensor) -> None:
        self._flush = flush
        self._start: Any = _cuda.Event(enable_timing=True)
        self._end: Any = _cuda.Event(enable_timing=True)
        side = _cuda.Stream()
        side.wait_stream(_cuda.current_stream())
        with _cuda.stream(side):  # what compiles, tunes or repacks does so before the capture
            for call in calls:
                call(x)
        _cuda.current_stream().wait_stream(side)
        self._capture(calls, x, min(_MOST, len(calls)))
        # How long a call takes is known only without the host, so from a graph.
        if (each := self.seconds()) * self._count < _LEAST:
            self._capture(calls, x, min(_MOST, ceil(_LEAST / max(each, 1e-9))))
        self.seconds()
        self.warm = self.seconds()

    def _capture(self, calls: Sequence[Call], x: Tensor, count: int) -> None:
        self._count = count
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for number in range(count):
                self._output: Any = calls[number % len(calls)](x)

    def seconds(self) -> float:
        self._flush.zero_()
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3 / self._count

    def output(self) -> Any:
        return self._output


class CudaClock:
    """See `timing.Clock`. Each contender rotates through twice the L2 cache by itself."""

    device = "cuda"
    kind = "CUDA events around a graph"
    alone = True

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.rotated = 2 * cache
        self._flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda")

    def prepare(self, calls: Sequence[Call], x: Tensor) -> CudaTimed:
        return CudaTimed(calls, x, self._flush)
