"""Run the suites one after the other: `python -m benchmarks [SUITE...]`; `--list` names them.

Each suite writes benchmarks/results/NAME.json with device and versions. Afterwards the figures in
README.md and docs are those of the files.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import readme
from esper_kernels.precision import has_products, has_tiles


@dataclass(frozen=True)
class Suite:
    """A script under benchmarks/ and what it measures.

    `why_not` tells why this machine is not the one that the suite is about; empty if it is.
    """

    script: str
    about: str
    arguments: tuple[str, ...] = ()
    why_not: Callable[[], str] = lambda: ""


def _tiles() -> str:
    return "" if has_tiles() else "it needs a CPU with tiles (AMX)"


def _plain() -> str:
    return "it needs a CPU without products of bfloat16" if has_products(torch.bfloat16) else ""


def _full() -> str:
    if not _plain():
        return "it needs a CPU with products of bfloat16"
    return "" if _tiles() else "it needs a CPU without tiles (AMX)"


def _triton(version: str) -> Callable[[], str]:
    def why_not() -> str:
        found = importlib.metadata.version("triton")
        return "" if found.startswith(f"{version}.") else f"it needs Triton {version}, not {found}"

    return why_not


def _output(name: str) -> tuple[str, str]:
    return "-o", str(readme.RESULTS / f"{name}.json")


SUITES = {
    "exactness": Suite("structure/exactness.py", "cuts against the masked original in float64"),
    "tightness": Suite(
        "structure/tightness.py", "pruned graphs against the same models built by hand"
    ),
    "reach": Suite(
        "structure/reach.py", "how far cuts reach over the zoo, beside Torch-Pruning (an hour)"
    ),
    "scale": Suite("structure/scale.py", "the axis analysis on up to 10,000 blocks, and Llama-70B"),
    "scaling": Suite("structure/scaling.py", "analysis, plan and apply against depth"),
    "overhead": Suite("live/overhead.py", "cost of a session and its record, nothing proposed"),
    "replays": Suite("live/replays.py", "100 runs that died once, replayed bit for bit"),
    "kills": Suite("live/kills.py", "200 runs killed with SIGKILL, and what their logs are worth"),
    "surgery": Suite(
        "live/surgery.py", "loss after live cuts and growth, by state policy and initialisation"
    ),
    "stages": Suite("live/stages.py", "the storyboards' tables over 10 paired seeds"),
    "stages_long": Suite("live/stages.py", "the same in their long forms (an hour)", ("--long",)),
    "signals_cost": Suite("live/signals_cost.py", "what boundary signals cost a training step"),
    "cpu_designs": Suite(
        "kernels/cpu_designs.py",
        "run-sparse layers on a CPU beside the designs that lost",
        why_not=_full,
    ),
    "cpu_designs_amx": Suite(
        "kernels/cpu_designs.py",
        "the same on a CPU with AMX",
        ("--result", "cpu_designs_amx"),
        _tiles,
    ),
    "cpu_designs_avx2": Suite(
        "kernels/cpu_designs.py",
        "the same on a CPU without products of bfloat16",
        ("--result", "cpu_designs_avx2"),
        _plain,
    ),
    "cpu_parts": Suite(
        "kernels/cpu_parts.py", "how many samples a run-sparse layer should work on at once"
    ),
    "cpu_memory": Suite(
        "kernels/cpu_memory.py", "what new memory costs run-sparse layers with many samples"
    ),
    "cpu_heap": Suite(
        "kernels/cpu_heap.py", "what a step costs where the freed end of the heap is given back"
    ),
    "minilm": Suite("end_to_end/minilm.py", "MiniLM pruned within 1%, every backend beside it"),
    "minilm_held_out": Suite(
        "end_to_end/minilm_held_out.py", "what the pruned MiniLM forgot, on unseen texts"
    ),
    "cpu_end_to_end": Suite(
        "end_to_end/random_transformers.py",
        "BERT-base with random weights through esper-opt, backend by backend",
        ("--device", "cpu"),
        _full,
    ),
    "cpu_end_to_end_amx": Suite(
        "end_to_end/random_transformers.py",
        "the same on a CPU with AMX",
        ("--device", "cpu", "--result", "cpu_end_to_end_amx"),
        _tiles,
    ),
    "cpu_end_to_end_bfloat16": Suite(
        "end_to_end/random_transformers.py",
        "the same in bfloat16, where kernels are",
        ("--device", "cpu", "--dtype", "bfloat16"),
        _full,
    ),
    "cpu_end_to_end_bfloat16_amx": Suite(
        "end_to_end/random_transformers.py",
        "the same on a CPU with AMX",
        ("--device", "cpu", "--dtype", "bfloat16", "--result", "cpu_end_to_end_bfloat16_amx"),
        _tiles,
    ),
    "kernels_cpu": Suite(
        "kernels/cpu.py",
        "our kernels beside oneDNN, MKL and int8 on this CPU (an hour)",
        why_not=_full,
    ),
    "kernels_cpu_amx": Suite(
        "kernels/cpu.py",
        "the same on a CPU with AMX (an hour)",
        (*_output("kernels_cpu_amx"), "--plot", str(readme.ROOT / "docs" / "kernels" / "amx")),
        _tiles,
    ),
    "kernels_cpu_avx2": Suite(
        "kernels/cpu.py",
        "the same on a CPU without products of bfloat16 (an hour)",
        (*_output("kernels_cpu_avx2"), "--plot", str(readme.ROOT / "docs" / "kernels" / "avx2")),
        _plain,
    ),
    "aot": Suite(
        "kernels/aot.py",
        "kernels compiled for sm_80 and sm_90, without a GPU",
        why_not=_triton("3.9"),
    ),
    "aot_triton36": Suite(
        "kernels/aot.py",
        "the same with the oldest Triton that is meant",
        ("-o", "aot_triton36"),
        _triton("3.6"),
    ),
    "gate_simulation": Suite(
        "gate/simulate.py",
        "error rates of the decision rule on simulated noise",
        _output("gate_simulation"),
    ),
    "gate": Suite("gate/bench_gate.py", "error rates of the gate as it runs here (hours)"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="default: all, in this order")
    parser.add_argument("--list", action="store_true", help="name the suites and stop")
    options = parser.parse_args(argv)
    if options.list:
        width = max(map(len, SUITES))
        for name, suite in SUITES.items():
            print(f"{name:{width}} {suite.about}")
        return 0
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"there is no suite {unknown[0]!r}; suites are {', '.join(SUITES)}")
    for name in options.suites:
        if reason := SUITES[name].why_not():
            parser.error(f"suite {name!r} cannot run here: {reason}")
    failed = []
    for name in options.suites or SUITES:
        suite = SUITES[name]
        if reason := suite.why_not():
            print(f"== {name} is left out: {reason}", flush=True)
            continue
        print(f"== {name}: {suite.about}", flush=True)
        started = time.monotonic()
        script = readme.ROOT / "benchmarks" / suite.script
        done = subprocess.run(
            [sys.executable, str(script), *suite.arguments], cwd=readme.ROOT, check=False
        )
        print(f"== {name} took {time.monotonic() - started:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    for page in readme.pages():
        page.write_text(readme.rewrite(page.read_text()))
    if failed:
        print(f"error: these suites failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
