"""The same seed on the same platform gives the same bits: across processes, deaths and keyframes.

    python benchmarks/live/replays.py

For each seed one process trains until it dies at a random boundary, a second goes on from the last
keyframe, and others replay the record of both: at all three levels from the start, and in full
from a random keyframe. Some are replayed by `esper replay` in a fresh interpreter. A run that is
never interrupted must end with the same bits.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.live import workload
from benchmarks.live.forks import child, forked
from benchmarks.result_file import write
from esper import replay
from esper.recorder.log import Log

RUNS, FRESH = 100, 5
ROOT = Path(__file__).resolve().parents[2]


def _dies(send: Callable[[Any], None], path: str, seed: int, at: int) -> None:
    def hook(tick: int) -> None:
        if tick == at:
            os._exit(9)

    workload.hook = hook
    workload.train(path, seed=seed)


def _goes_on(path: str) -> str:
    return workload.digest(replay.resume(path))


def _whole(seed: int) -> str:
    return workload.digest(workload.train(None, seed=seed))


def _replayed(path: str, code: str) -> dict[str, bool]:
    log = Log(path)
    return {
        "decision": replay.decision(log).equal,
        "pass": replay.passes(log).equal,
        "full": replay.full(log).equal,
        "full, from a random keyframe": replay.full(log, start_at=code).equal,
    }


def _fresh(path: str) -> bool:
    command = [sys.executable, "-m", "esper.cli.main", "replay", path]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Record, die, go on, replay; write the result file."""
    torch.set_num_threads(1)
    workload.warm()
    chance = random.Random(0)
    equal: Counter[str] = Counter()
    of: Counter[str] = Counter()
    changes = 0

    def count(name: str, same: bool) -> None:
        of[name] += 1
        equal[name] += same

    with tempfile.TemporaryDirectory() as folder:
        for seed in range(RUNS):
            path = os.path.join(folder, f"run{seed}.esperlog")
            with child(_dies, path, seed, chance.randrange(1, 40)) as (process, _):
                process.join()
            end = forked(_goes_on, path)
            count("an uninterrupted run ends with the same bits", forked(_whole, seed) == end)
            log = Log(path)
            changes += log.counts()["rewrite"]
            frames = [event.code for event in log if event.kind == "keyframe"]
            for level, same in forked(_replayed, path, chance.choice(frames)).items():
                count(f"replay, level {level}", same)
            if seed < FRESH:
                count("esper replay in a fresh interpreter", _fresh(path))
            if seed % 10 == 9:
                print(dict(equal), flush=True)
    write(
        "replays",
        "Recorded runs that died once, resumed, and replayed bit for bit",
        [{"comparison": name, "equal": equal[name], "of": of[name]} for name in of],
        command="python benchmarks/live/replays.py",
        notes=[
            f"{RUNS} seeds; {workload.ABOUT}.",
            f"The logs hold {changes} changes of structure.",
        ],
    )


if __name__ == "__main__":
    main()
