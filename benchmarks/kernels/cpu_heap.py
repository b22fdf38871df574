"""What a step of BERT-base costs on a CPU where the freed end of the heap is given back.

    python benchmarks/kernels/cpu_heap.py [--processes N]

Fresh processes load the same two files and time them, with kernels as they are and without
`esper_kernels.pages.keep_freed`, in turn. Beside the time are the page faults of a step
(getrusage(2), ru_minflt), which say where it went. Whether there are any hangs on where the heap of
a process happens to end.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import esper
from benchmarks.end_to_end.random_transformers import LENGTH, PIPELINES, bert
from benchmarks.result_file import write
from esper.ir.artifact import load, save

FILES = ("int8", "a quarter in runs, int8")
STEPS, WARM = 24, 3


def make(folder: Path) -> None:
    """Each pipeline's model, unjudged: only its memory is asked about."""
    torch.manual_seed(0)
    model = esper.trace(bert(small=False), (), {"input_ids": ids()})
    for name in FILES:
        passes = PIPELINES[name].replace("lower-kernels", "lower-kernels{choose=all freeze=yes}")
        save(esper.optimize(model, passes).model, folder / name)


def ids() -> torch.Tensor:
    """One row of tokens."""
    return torch.arange(LENGTH).view(1, -1)


@torch.no_grad()
def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Milliseconds and page faults of a step: medians of this process."""
    runs = {name: load(folder / name) for name in random.sample(FILES, len(FILES))}
    spent: dict[str, list[tuple[float, int]]] = {name: [] for name in FILES}
    for number in range(WARM + STEPS):
        for name in random.sample(FILES, len(FILES)):
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            start = time.thread_time()
            runs[name](input_ids=ids())
            seconds = time.thread_time() - start
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            if number >= WARM:
                spent[name].append((1000 * seconds, faults))
    return {
        name: (statistics.median(m for m, _ in seen), statistics.median(f for _, f in seen))
        for name, seen in spent.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--here", type=Path, help="measure files of this folder, print JSON")
    parser.add_argument("--plain", action="store_true", help="without keep_freed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.here is not None:
        with mock.patch("esper_kernels.define.keep_freed") if options.plain else nullcontext():
            print(json.dumps(measure(options.here)))
        return
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        for _ in range(options.processes):
            for kept, more in (("kept", []), ("given back", ["--plain"])):
                command = [sys.executable, __file__, "--here", folder, *more]
                ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                for name, medians in json.loads(ran.stdout).items():
                    found.setdefault((name, kept), []).append(tuple(medians))
    write(
        "cpu_heap",
        "Steps of BERT-base on a CPU, with the freed end of the heap kept and given back",
        [_row(name, kept, seen) for (name, kept), seen in sorted(found.items())],
        command=f"python benchmarks/kernels/cpu_heap.py --processes {options.processes}",
        notes=[
            *(f"{name}: `{PIPELINES[name]}`, every layer that fits" for name in FILES),
            f"{options.processes} fresh processes each, in turn",
            f"a process counts with the median of {STEPS} steps, processor time of one thread",
        ],
    )


def _row(name: str, kept: str, seen: list[tuple[float, float]]) -> dict[str, Any]:
    times, faults = zip(*seen, strict=True)
    return {
        "model": name,
        "freed memory": kept,
        "fastest ms": round(min(times), 1),
        "median ms": round(statistics.median(times), 1),
        "slowest ms": round(max(times), 1),
        "processes with 1000 page faults a step": sum(f > 1000 for f in faults),
        "most page faults": int(max(faults)),
    }


if __name__ == "__main__":
    main()
