"""Compile every kernel in every shipped configuration for sm_80 and sm_90, and keep the figures.

python benchmarks/kernels/aot.py [--jobs N] [-o FILE]

No GPU is needed. Rows tell registers, bytes on the stack and of shared memory, and how many
instructions of each kind the machine code has; whatever is not as `esper_kernels.shipped` means it
is printed, and the script fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.result_file import write
from esper_kernels import aot, shipped


def compiled(number: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, complaints) of the case of a number, on all devices that it is meant for."""
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION is unset")
    rows, complaints = [], []
    case = list(shipped.cases())[number]
    for launch in case.launches():
        for capability in aot.CAPABILITIES:
            if capability >= case.config.capability:
                figures = aot.figures(launch, capability)
                kernel = launch.kernel.__name__
                rows.append(row(case, kernel, capability, figures))
                found = shipped.complaints(case, kernel, capability, figures)
                complaints += [f"{case.name}, {kernel}, sm_{capability}: {c}" for c in found]
    return rows, complaints


def row(
    case: shipped.Case, kernel: str, capability: int, figures: aot.Figures
) -> dict[str, str | int]:
    """A row of the file."""
    return {
        "case": case.name,
        "kernel": kernel,
        "device": f"sm_{capability}",
        "registers": figures.registers,
        "stack": figures.stack,
        "shared": figures.shared,
        "instructions": figures.text,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("-o", "--output", default="aot", help="name of the file in results/")
    options = parser.parse_args(argv)
    import triton

    started = time.monotonic()
    numbers = range(len(list(shipped.cases())))
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(compiled, numbers))
    rows = [row for rows, _ in found for row in rows]
    complaints = [complaint for _, complaints in found for complaint in complaints]
    print(f"{len(rows)} kernels in {time.monotonic() - started:.0f} s")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    path = write(
        options.output,
        "Kernels compiled ahead of time: registers, memory and instructions",
        rows,
        command=f"python -m benchmarks {options.output}",
        versions={"triton": triton.__version__},
        notes=[
            "Instructions are counted in the machine code, not in what is run.",
            "Nothing here was run on a GPU.",
        ],
    )
    print(f"wrote {path}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
