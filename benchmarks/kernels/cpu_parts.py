"""How many bytes of samples a run-sparse layer should work on at once on a CPU.

    python benchmarks/kernels/cpu_parts.py [--rounds N]

Layers with many samples, gathered or rounded in parts of several sizes, beside the dense layer of
the same dtype: medians over rounds in random order, processor time of one thread. What
esper_kernels takes on this processor is in the notes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kernels.cpu_designs import Sparse, dense, ours, ours_int8
from benchmarks.kernels.cpu_memory import timed
from benchmarks.result_file import write
from esper_kernels import at_once, pages
from esper_kernels.precision import has_products

SHAPES = ((3072, 768), (768, 3072), (4096, 4096))  # outputs, inputs
SAMPLES = (256, 1024, 4096)
MIB = (2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    pages.keep_freed()  # as the op does when it is first called
    dtypes = [d for d in (torch.float32, torch.bfloat16) if has_products(d)]
    rows = [row for dtype in dtypes for row in measure(dtype, rounds)]
    taken = {kind: getattr(at_once, kind)() >> 20 for kind in ("gathered", "rounded")}
    write(
        "cpu_parts",
        "Run-sparse layers with many samples on a CPU, by how much of them is worked on at once",
        rows,
        command=f"python benchmarks/kernels/cpu_parts.py --rounds {rounds}",
        notes=[
            "esper_kernels takes "
            + " and ".join(f"{size} MiB of what is {kind}" for kind, size in taken.items())
            + " on this processor",
            f"medians of {rounds} rounds in milliseconds, processor time of one thread",
        ],
    )


@torch.no_grad()
def measure(dtype: torch.dtype, rounds: int) -> Iterator[dict[str, Any]]:
    """One row for each layer, number of samples and what is done to them."""
    for outputs, inputs in SHAPES:
        weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
        for samples in SAMPLES:
            x = torch.randn(samples, inputs).to(dtype)
            for kind, density in (("gathered", 0.5), ("gathered", 0.25), ("rounded", 0.25)):
                make = ours_int8 if kind == "rounded" else ours
                call = partial(make(Sparse.draw(outputs, inputs, 128, 16, density, dtype)), x)
                calls: dict[str, Callable[[], Any]] = {"dense": partial(dense(weight), x)}
                for size in MIB:
                    calls[f"{size} MiB"] = partial(limited, kind, size << 20, call)
                times = timed(calls, rounds)
                yield {
                    "dtype": str(dtype).removeprefix("torch."),
                    "layer": f"{outputs}x{inputs}",
                    "pattern": f"128:1:{round(1 / density)}x16"
                    + ("+int8" if kind == "rounded" else ""),
                    "samples": samples,
                    **{n: round(1000 * statistics.median(t), 2) for n, t in times.items()},
                }


def limited(kind: str, size: int, call: Callable[[], Tensor]) -> Tensor:
    """A call that works on at most so many bytes at once."""
    with mock.patch.object(at_once, kind, return_value=size):
        return call()


if __name__ == "__main__":
    main()
