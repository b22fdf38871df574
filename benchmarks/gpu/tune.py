"""The fastest config of every op on the layers of the suite, measured on this GPU.

    python benchmarks/gpu/tune.py --budget-seconds 60 -o tuned.json

Ops ask `launch.choose` for a config by the product they are to do. Here each such question is
written down, then answered with one config after the other while `autotune.tune` holds the watch.
Results are kept in the cache of this machine; `configs` in the file is what a table in
esper_kernels/tuned would hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from esper_kernel_bench import compression, esper_ops, layers
from esper_kernel_bench.problem import Problem as Layer
from esper_kernel_bench.sampling import reason_of
from esper_kernels import autotune, launch, measured
from esper_kernels.config import Config, Problem

ROWS = (1, 16, 64, 1024)
Question = tuple[Problem, tuple[Config, ...]]


@contextmanager
def answering(answer: Callable[[Question], Config | None]) -> Iterator[None]:
    """Let `answer` stand for what was measured before."""

    def recall(problem: Problem, configs: tuple[Config, ...], device: str) -> Config | None:
        return answer((problem, configs))

    with mock.patch.object(measured, "recall", recall):
        launch.choose.cache_clear()
        yield
    launch.choose.cache_clear()


def questions(call: Callable[[], object]) -> list[Question]:
    """What a call asks for."""
    asked: list[Question] = []
    with answering(asked.append):
        call()
    return list(dict.fromkeys(asked))


def tuned(call: Callable[[], object], question: Question) -> Config:
    """The fastest config of one question of a call."""

    def run(config: Config) -> None:
        with answering(lambda asked: config if asked == question else None):
            call()

    return autotune.tune(*question, torch.device("cuda"), run)


def row(layer: Layer, m: int, call: Callable[[], object], question: Question) -> dict[str, Any]:
    """A question with the config by rule of thumb and the fastest."""
    problem, configs = question
    device = torch.device("cuda")
    thumb = launch.rule_of_thumb(problem, configs, *launch.properties(device)[1:])
    best = tuned(call, question)
    return {
        "layer": layer.layer.id,
        "m": m,
        "product": problem.key,
        "rule of thumb": _text(thumb),
        "fastest": _text(best),
        "same": thumb == best,
        "config": best,
    }


def _text(config: Config) -> str:
    tile = f"{config.block_m}x{config.block_n}x{config.block_k}"
    more = f"{config.warps} warps, {config.stages} stages"
    return f"{tile}, {more}" + (f", split {config.split}" if config.split > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-seconds", type=float, default=600.0)
    parser.add_argument("--shapes", default=",".join(layers.QUICK))
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device here")
    end = time.monotonic() + options.budget_seconds
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for shape in layers.choose(options.shapes.split(",")):
        layer = Layer(shape, ROWS, torch.bfloat16, "cuda", 0)
        wanted = compression.choose(compression.QUICK)
        for contender in esper_ops.contenders(shape, wanted, torch.bfloat16, "cuda"):
            try:
                for m in ROWS if time.monotonic() < end else ():
                    run = contender.build(layer).make()
                    x = layer.input(m)
                    for question in questions(lambda run=run, x=x: run(x)):  # type: ignore[misc]
                        rows.append(row(layer, m, lambda run=run, x=x: run(x), question))  # type: ignore[misc]
                        print(rows[-1], flush=True)
            except Exception as error:  # noqa: BLE001 - one op that fails must not hide the others
                notes.append(f"{shape.id}, {contender.key}: {reason_of(error)}")
                print(notes[-1], flush=True)
    if time.monotonic() >= end:
        notes.append("The time ended before all products were measured.")
    table = {r["product"]: r.pop("config") for r in rows}
    result = {
        "title": "The config that was fastest, beside the one that the rule of thumb takes",
        "command": "benchmarks/gpu/tune.py",
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": str(torch.__version__)},
        "rows": rows,
        "notes": notes,
        "configs": measured.write_table(table),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
