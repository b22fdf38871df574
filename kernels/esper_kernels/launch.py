"""Which config a kernel runs in: what was measured on this device, else a rule of thumb.

Tables that come with the package lie in tuned/, one file for each device that somebody has
measured. None is there so far: no config has run on a GPU yet. Next comes what `autotune` measured
on this machine, then `rule_of_thumb`.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from importlib import resources

import torch

from esper_kernels import measured
from esper_kernels.config import Config, Problem

ENOUGH = 0.75  # programs for this share of the multiprocessors count as a full device


@lru_cache(maxsize=4096)
def choose(problem: Problem, configs: tuple[Config, ...], device: torch.device) -> Config:
    """The config for a product on a device, out of those that the op ships."""
    name, capability, processors = properties(device)
    known = shipped(name).get(problem.key) or measured.recall(problem, configs, name)
    return known or rule_of_thumb(problem, configs, capability, processors)


def rule_of_thumb(
    problem: Problem, configs: tuple[Config, ...], capability: int, processors: int
) -> Config:
    """The largest tile that fits the rows and fills the device; with split sums only if none does.

    Large tiles read the factors least often; where they are too few to keep all multiprocessors
    busy, a smaller one reads from more places at a time. Tiles of the least height that holds all
    rows waste the fewest multiplications.
    """
    able = [c for c in configs if c.capability <= capability]
    heights = sorted({c.block_m for c in able})
    height = next((h for h in heights if h >= problem.m), heights[-1])
    # More rows than any tile holds: tiles of 64 rows and more trade places by what fills.
    fitting = [c for c in able if c.block_m == height or problem.m > c.block_m >= min(64, height)]
    rows = problem.rows or problem.n
    whole = [c for c in fitting if rows % c.block_n == 0 or rows >= problem.n]
    fitting = whole or [min(fitting, key=lambda c: c.block_n)]
    fitting.sort(key=lambda c: (c.split, -c.block_m * c.block_n))
    full = [c for c in fitting if problem.programs(c) >= ENOUGH * processors]
    return full[0] if full else max(fitting, key=problem.programs)


@cache
def properties(device: torch.device) -> tuple[str, int, int]:
    """(name, compute capability, multiprocessors); without a GPU those of an interpreter."""
    if device.type != "cuda":
        return device.type, 90, 1
    found = torch.cuda.get_device_properties(device)
    return found.name, 10 * found.major + found.minor, found.multi_processor_count


@cache
def shipped(device: str) -> dict[str, Config]:
    """The table of a device that comes with the package; empty where there is none."""
    file = resources.files("esper_kernels") / "tuned" / f"{device.replace(' ', '_')}.json"
    return measured.read_table(json.loads(file.read_text())) if file.is_file() else {}
