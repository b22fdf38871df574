"""What new memory costs run-sparse layers with many samples on a CPU.

    python benchmarks/kernels/cpu_memory.py [--rounds N]

Large tensors are mapped anew by glibc at each call, page by page. The same rounds run in a process
as it is, in one where PyTorch asks for large pages, and in one whose allocator keeps memory
(mallopt(3): no maps, no trimming). Each round runs the dense layer, ours, ours without the large
pages that it asks for itself, and filling a new output, in random order; processor time of one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kernels.cpu_designs import Sparse, ours
from benchmarks.result_file import write
from esper_kernels import pages
from esper_kernels.vnm_linear import cpu

SHAPES = ((3072, 768), (768, 3072), (4096, 4096))  # outputs, inputs
PATTERNS = ((128, 16, 0.25), (512, 16, 0.25))
SAMPLES = (1024, 4096)
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "large pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "keeps memory": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)},
}


@torch.no_grad()
def measure(rounds: int) -> list[dict[str, Any]]:
    """Medians of this process."""
    pages.keep_freed()  # as the op does when it is first called
    rows = []
    for outputs, inputs in SHAPES:
        weight = torch.randn(outputs, inputs) / inputs**0.5
        drawn = {
            f"{height}:1:{round(1 / density)}x{run}": Sparse.draw(
                outputs, inputs, height, run, density, torch.float32
            )
            for height, run, density in PATTERNS
            if outputs % height == 0
        }
        for samples in SAMPLES:
            x = torch.randn(samples, inputs)
            calls: dict[str, Callable[[], Any]] = {
                "dense": partial(functional.linear, x, weight),
                "output": partial(torch.full, (samples, outputs), 1.0),
            }
            for name, w in drawn.items():
                calls[name] = partial(ours(w), x)
                calls[f"{name} plain"] = partial(plain, calls[name])
            times = timed(calls, rounds)
            dense, new = times["dense"], times["output"]
            for pattern in drawn:
                seconds = times[pattern]
                share = statistics.median(d / s for d, s in zip(dense, seconds, strict=True)) / 4
                rows.append(
                    {
                        "layer": f"{outputs}x{inputs}",
                        "pattern": pattern,
                        "samples": samples,
                        "dense ms": milliseconds(dense),
                        "ours ms": milliseconds(seconds),
                        "ours, plain pages ms": milliseconds(times[f"{pattern} plain"]),
                        "filling an output ms": milliseconds(new),
                        "share of limit": round(share, 2),
                    }
                )
    return rows


def plain(call: Callable[[], Tensor]) -> Tensor:
    """A call that asks for no large pages."""
    with mock.patch.object(cpu, "new_output", lambda like, *shape: like.new_empty(shape)):
        return call()


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, interleaved; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in random.sample(list(calls), len(calls)):
            start = time.thread_time()
            calls[name]()
            if number:
                times[name].append(time.thread_time() - start)
    return times


def milliseconds(seconds: list[float]) -> float:
    """Their median."""
    return round(1000 * statistics.median(seconds), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    if options.here:
        print(json.dumps(measure(options.rounds)))
        return
    rows = []
    for name, setting in SETTINGS.items():
        command = [sys.executable, __file__, "--here", "--rounds", str(options.rounds)]
        ran = subprocess.run(
            command, env={**os.environ, **setting}, stdout=subprocess.PIPE, check=True, text=True
        )
        rows += [{"allocator": name, **row} for row in json.loads(ran.stdout)]
    write(
        "cpu_memory",
        "Run-sparse layers with many samples on a CPU, with and without new memory at each call",
        rows,
        command=f"python benchmarks/kernels/cpu_memory.py --rounds {options.rounds}",
        notes=[
            *(
                f"{name}: " + " ".join(f"{key}={value}" for key, value in setting.items())
                for name, setting in SETTINGS.items()
                if setting
            ),
            "share of limit: speedup over the dense layer, over 4 for a quarter of the weights",
            f"medians of {options.rounds} rounds, processor time of one thread, float32",
        ],
    )


if __name__ == "__main__":
    main()
