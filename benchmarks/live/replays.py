"""The same seed on the same platform gives the same bits: across processes, deaths and keyframes.

    python benchmarks/live/replays.py

For each seed one process trains until it dies at a random boundary, a second goes on from the last
keyframe, and others replay the record of both, from the start and from a random keyframe. Some are
replayed at the other levels, too, and by `esper replay` in a fresh interpreter. A run that is never
interrupted must end with the same bits.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.live import workload
from benchmarks.live.forks import child, folder, forked, spread
from benchmarks.result_file import write
from esper import replay
from esper.recorder.log import Log

RUNS, STEPS = 100, 24
SOME, FRESH = 25, 3  # seeds that are also replayed at other levels, in fresh interpreters
ROOT = Path(__file__).resolve().parents[2]


def _dies(send: Callable[[Any], None], path: str, seed: int, at: int) -> None:
    def hook(tick: int) -> None:
        if tick == at:
            os._exit(9)

    workload.hook = hook
    workload.train(path, seed=seed, steps=STEPS)


def _goes_on(path: str) -> str:
    return str(replay.resume(path))


def _whole(seed: int) -> str:
    return workload.train(None, seed=seed, steps=STEPS)


def _replayed(path: str, code: str, *, all_levels: bool) -> dict[str, bool]:
    log = Log(path)
    found = {
        "full": replay.full(log).equal,
        "full, from a random keyframe": replay.full(log, start_at=code).equal,
    }
    if all_levels:
        found |= {"decision": replay.decision(log).equal, "pass": replay.passes(log).equal}
    return found


def _fresh(path: str) -> bool:
    command = [sys.executable, "-m", "esper.cli.main", "replay", path]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def run(folder_name: str, seed: int) -> tuple[dict[str, bool], int]:
    """One seed: comparisons by name, and how often the structure changed."""
    chance = random.Random(seed)
    path = os.path.join(folder_name, f"run{seed}.esperlog")
    with child(_dies, path, seed, chance.randrange(1, STEPS)) as (process, _):
        process.join()
    end = forked(_goes_on, path)
    found = {"an uninterrupted run ends with the same bits": forked(_whole, seed) == end}
    log = Log(path)
    frames = [event.code for event in log if event.kind == "keyframe"]
    levels = partial(_replayed, all_levels=seed < SOME)
    for level, same in forked(levels, path, chance.choice(frames)).items():
        found[f"replay, level {level}"] = same
    if seed < FRESH:
        found["esper replay in a fresh interpreter"] = _fresh(path)
    return found, log.counts()["rewrite"]


def main() -> None:
    """Record, die, go on, replay; write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    torch.set_num_threads(1)
    workload.warm()
    equal: Counter[str] = Counter()
    of: Counter[str] = Counter()
    changes = 0
    with folder() as name:
        for found, changed in spread(lambda seed: run(name, seed), range(RUNS), workers):
            changes += changed
            of.update(dict.fromkeys(found, 1))
            equal.update(found)
    write(
        "replays",
        "Recorded runs that died once at a random boundary, went on, and were compared bit for bit",
        [{"comparison": name, "equal": equal[name], "of": of[name]} for name in of],
        command="python benchmarks/live/replays.py",
        notes=[
            f"{RUNS} seeds; a run is {STEPS} {workload.ABOUT}.",
            f"{changes} changes of structure in all.",
        ],
    )
    print(dict(equal), dict(of))


if __name__ == "__main__":
    main()
