"""`kill -9` at random moments of a training run: what is left of its flight record.

    python benchmarks/live/kills.py

Every run is a process of its own that is killed at a random moment between its first line and its
last. Then its log must open and verify, hold every tick that the process had told of, and bring
the run back: another process goes on from the last keyframe and must end with the same bits as a
run that nobody killed, and the log of both together must replay from start to end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
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
from esper.recorder.chain import verify_path
from esper.recorder.log import Log

KILLS, SEEDS = 200, 8
CHECKS = (
    "opened and verified",
    "nothing recorded was lost",
    "resumed with the same end",
    "replayed over the kill",
)
MOMENTS = ("before the log was there", "before the first keyframe", "with a torn tail")


def _whole(seed: int, path: str) -> tuple[str, float]:
    started = time.perf_counter()
    session = workload.train(path, seed=seed)
    return workload.digest(session), time.perf_counter() - started


def _victim(send: Callable[[Any], None], seed: int, path: str) -> None:
    send("begun")
    workload.hook = send
    workload.train(path, seed=seed)


def _again(seed: int, path: str) -> str:
    """Go on, or begin where nothing was recorded yet."""
    log = Path(path)
    if log.exists() and len(Log(log)):
        return workload.digest(replay.resume(log))
    log.unlink(missing_ok=True)
    return workload.digest(workload.train(path, seed=seed))


def _replays(path: str) -> bool:
    return replay.full(Log(path)).equal


def kill(path: Path, seed: int, delay: float, expected: str, found: Counter[str]) -> bool:
    """One kill; False if the run ended before it."""
    told = -1
    with child(_victim, seed, str(path)) as (process, receiver):
        receiver.recv()
        time.sleep(delay)
        process.kill()
        process.join()
        try:
            while receiver.poll():
                told = receiver.recv()
        except EOFError:
            pass
    if process.exitcode != -signal.SIGKILL:
        return False
    found["killed"] += 1
    if path.exists():
        state = verify_path(path)
        log = Log(path)
        found["opened and verified"] += state.ok
        found["with a torn tail"] += bool(state.torn_bytes)
        # A process tells of a tick before it steps, so the tick before that was recorded.
        ticks = [event.tick for event in log if event.kind == "tick"]
        found["nothing recorded was lost"] += max(ticks, default=-1) >= told - 1
        found["before the first keyframe"] += not log.counts()["keyframe"]
    else:
        found["before the log was there"] += 1
        for name in ("opened and verified", "nothing recorded was lost"):
            found[name] += told < 0
    found["resumed with the same end"] += forked(_again, seed, str(path)) == expected
    found["replayed over the kill"] += forked(_replays, str(path))
    return True


def main() -> None:
    """Kill, resume, compare; write the result file."""
    torch.set_num_threads(1)
    workload.warm()
    chance = random.Random(0)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        ends, seconds = {}, []
        for seed in range(SEEDS):
            ends[seed], took = forked(_whole, seed, os.path.join(folder, f"whole{seed}.esperlog"))
            seconds.append(took)
        # The first run of a process is slower than its later ones; each of these is a first one.
        longest = max(seconds)
        number = 0
        while found["killed"] < KILLS:
            number += 1
            seed = chance.randrange(SEEDS)
            path = Path(folder) / f"run{number}.esperlog"
            delay = chance.uniform(0, longest)
            kill(path, seed, delay, ends[seed], found)
            if number % 20 == 0:
                print(number, dict(found), flush=True)
    rows = [{f"of {KILLS} killed runs": name, "runs": found[name]} for name in (*CHECKS, *MOMENTS)]
    write(
        "kills",
        "Training runs killed with SIGKILL at random moments",
        rows,
        command="python benchmarks/live/kills.py",
        notes=[
            f"{SEEDS} seeds; {workload.ABOUT}.",
            "The same end is the same digest of model, optimizer, schedule, average, generators.",
        ],
    )


if __name__ == "__main__":
    main()
