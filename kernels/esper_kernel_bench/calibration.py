"""The roofs that a device reaches when asked plainly: for limits that are not a data sheet's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.contender import Call
from esper_kernel_bench.cpu_peers import PREPACKED, QLINEAR
from esper_kernel_bench.timing import Clock
from esper_kernels.roofline import UNITS, Device, Work

_VISITS = 7
_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of square products


def calibrate(clock: Clock, dtypes: Sequence[torch.dtype], seed: int) -> Device:
    """Bandwidth, the best square dense product of each dtype and of int8, and an empty launch.

    Bandwidth is the better of copying, which moves two bytes for each, and of reading alone.
    Products that the device cannot do leave their unit out.
    """
    generator = torch.Generator(clock.device).manual_seed(seed)

    def best(call: Callable[[Tensor], Any], x: Tensor) -> float:
        timed = clock.prepare([call], x)
        return min(timed.seconds() for _ in range(_VISITS))

    with torch.inference_mode():
        # Read over and over, twice a cache could still find half of itself there.
        floats = clock.rotated // 4 * (4 if clock.alone else 1)
        stream = torch.randn(floats, generator=generator, device=clock.device)
        target = torch.empty_like(stream)
        nothing = torch.zeros(1, device=clock.device)
        read = stream.nbytes / best(lambda x: stream.sum(), nothing)
        copy = 2 * stream.nbytes / best(lambda x: target.copy_(stream), nothing)
        empty = clock.prepare([torch.neg], nothing)
        floor = median(empty.seconds() for _ in range(50 * _VISITS))
        peaks: dict[str, float] = {}
        for dtype in (*dtypes, torch.int8):
            unit = UNITS[dtype]
            for size in _SIZES[clock.device]:
                x = torch.randn(size, size, generator=generator, device=clock.device)
                for pack in _products(x, dtype):
                    try:
                        seconds = best(pack(), x if dtype is torch.int8 else x.to(dtype))
                    except (RuntimeError, NotImplementedError):
                        continue  # this device or build has no such product
                    peaks[unit] = max(peaks.get(unit, 0.0), 2 * size**3 / seconds)
    return Device(
        "measured",
        peaks,
        max(read, copy),
        floor,
        "plain streams, products and dense layers on this device",
    )


def _products(x: Tensor, dtype: torch.dtype) -> Sequence[Callable[[], Call]]:
    """Ways to multiply with a matrix of that dtype, which packing may not have on this device."""
    weight = (
        x.mul(32).round().clamp(-127, 127).to(torch.int8) if dtype is torch.int8 else x.to(dtype)
    )

    def plain(rows: Tensor) -> Tensor:
        if dtype is torch.int8:
            return torch._int_mm(weight, weight.t())
        return functional.linear(rows, weight)

    def packed() -> Call:
        library, given = (QLINEAR, x) if dtype is torch.int8 else (PREPACKED, weight)
        return library.pack(given, None).make()

    return [lambda: plain, packed] if x.device.type == "cpu" else [lambda: plain]


def raised(device: Device, reached: Sequence[tuple[Work, float]]) -> Device:
    """The roofs, with what dense layers reached after all: pairs of work and seconds."""
    peaks, bandwidth = dict(device.peaks), device.bandwidth
    for work, seconds in reached:
        peaks[work.unit] = max(peaks.get(work.unit, 0.0), work.flops / seconds)
        bandwidth = max(bandwidth, work.bytes / seconds)
    return Device(device.name, peaks, bandwidth, device.floor, device.source)
