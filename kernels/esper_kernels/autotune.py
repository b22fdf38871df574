"""Measuring configs on the device at hand.

Times are of single runs, each a CUDA graph so that the host is left out, between two events, with
the L2 cache emptied before, since a layer of a model finds its weights in memory and not in a
cache. Configs take turns in random order, so that a change of clocks meets all alike; the least
median wins. `launch.choose` finds the result later, in this process and in others on this machine.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import torch

from esper_kernels import measured
from esper_kernels.config import Config, Problem
from esper_kernels.launch import choose, properties

WARM_UPS = 2  # runs of each config before its graph is captured; the first compiles
ROUNDS = 15


def tune(
    problem: Problem,
    configs: tuple[Config, ...],
    device: torch.device,
    run: Callable[[Config], object],
) -> Config:
    """The fastest config for a product, which is kept.

    Args:
        problem: what is measured.
        configs: what the op ships.
        device: a CUDA device.
        run: does the product once in a config, on the current stream.

    Raises:
        ValueError: without a CUDA device.
    """
    if device.type != "cuda":
        raise ValueError(f"configs are measured on a CUDA device, not on {device}")
    name, capability, _ = properties(device)
    able = [c for c in configs if c.capability <= capability]
    with torch.cuda.device(device):
        times = _times(able, device, run)
    best = min(able, key=lambda config: statistics.median(times[config]))
    measured.keep(problem, configs, name, best)
    choose.cache_clear()
    return best


def _times(
    configs: list[Config], device: torch.device, run: Callable[[Config], object]
) -> dict[Config, list[float]]:
    """Milliseconds of each config's runs."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(2 * cache, dtype=torch.int8, device=device)
    graphs = {config: _graph(config, run) for config in configs}
    order = random.Random(0)
    runs: list[tuple[Config, torch.cuda.Event, torch.cuda.Event]] = []
    for _ in range(ROUNDS):
        for config in order.sample(configs, len(configs)):
            start, end = (_event() for _ in range(2))
            flush.zero_()
            start.record()
            graphs[config].replay()
            end.record()
            runs.append((config, start, end))
    torch.cuda.synchronize(device)
    times: dict[Config, list[float]] = {config: [] for config in configs}
    for config, start, end in runs:
        times[config].append(start.elapsed_time(end))
    return times


def _graph(config: Config, run: Callable[[Config], object]) -> torch.cuda.CUDAGraph:
    for _ in range(WARM_UPS):
        run(config)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(config)
    return graph


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
