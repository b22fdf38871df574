"""`kill -9` at random moments of a training run: what is left of its flight record.

    python benchmarks/live/kills.py

Every run is a process of its own that is killed at a random moment between its first line and its
last. Then its log must open and verify, hold every tick that the process had told of, and bring
the run back: another process goes on from the last keyframe and must end with the same bits as a
run that nobody killed, and the log of both together must replay from start to end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.live import workload
from benchmarks.live.forks import child, folder, forked, spread
from benchmarks.result_file import write
from esper import replay
from esper.recorder.chain import verify_path
from esper.recorder.log import Log

KILLS, SEEDS, STEPS = 200, 8, 24
REPLAYED_EVERY = 4
OPENED, KEPT = "the log opens and verifies", "nothing that was recorded is lost"
RESUMED = "resumed, the run ends with the same bits"
REPLAYED = "the log of both lives replays from the start"
CHECKS = (OPENED, KEPT, RESUMED, REPLAYED)
MOMENTS = (
    "killed before the log was there",
    "killed before the first keyframe",
    "killed after a change of structure",
    "killed within a write: a torn tail",
)


def _whole(seed: int, path: str) -> tuple[str, float]:
    started = time.perf_counter()
    return workload.train(path, seed=seed, steps=STEPS), time.perf_counter() - started


def _victim(send: Callable[[Any], None], seed: int, path: str) -> None:
    send("begun")
    workload.hook = send
    workload.train(path, seed=seed, steps=STEPS)


def _again(seed: int, path: str) -> str:
    """Go on, or begin where nothing was recorded yet."""
    log = Path(path)
    if log.exists() and len(Log(log)):
        return str(replay.resume(log))
    log.unlink(missing_ok=True)
    return workload.train(path, seed=seed, steps=STEPS)


def _replays(path: str) -> bool:
    return replay.full(Log(path)).equal


def kill(
    path: Path, seed: int, chance: random.Random, longest: float, expected: str
) -> Counter[str]:
    """Runs until one of them is killed before it ends, and what is left of that."""
    found: Counter[str] = Counter()
    told = -1
    code: int | None = 0
    while code != -signal.SIGKILL:
        shutil.rmtree(f"{path}.d", ignore_errors=True)
        path.unlink(missing_ok=True)
        told = -1
        with child(_victim, seed, str(path)) as (process, receiver):
            receiver.recv()
            time.sleep(chance.uniform(0, longest))
            process.kill()
            process.join()
            with contextlib.suppress(EOFError):
                while receiver.poll():
                    told = receiver.recv()
        code = process.exitcode
    if path.exists():
        state = verify_path(path)
        log = Log(path)
        found[OPENED] += state.ok
        found[MOMENTS[3]] += bool(state.torn_bytes)
        # A process tells of a tick before it steps, so the tick before that was recorded.
        ticks = [event.tick for event in log if event.kind == "tick"]
        found[KEPT] += max(ticks, default=-1) >= told - 1
        found[MOMENTS[1]] += not log.counts()["keyframe"]
        found[MOMENTS[2]] += bool(log.counts()["rewrite"])
    else:
        found[MOMENTS[0]] += 1
        found[OPENED] += told < 0
        found[KEPT] += told < 0
    found[RESUMED] += forked(_again, seed, str(path)) == expected
    return found


def main() -> None:
    """Kill, resume, compare; write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    torch.set_num_threads(1)
    workload.warm()
    total: Counter[str] = Counter()
    with folder() as name:
        wholes = [(seed, os.path.join(name, f"whole{seed}.esperlog")) for seed in range(SEEDS)]
        found = spread(lambda item: (item[0], *forked(_whole, *item)), wholes, workers)
        ends = {seed: end for seed, end, _ in found}
        # The first run of a process is slower than its later ones; each of these is a first one.
        longest = max(seconds for *_, seconds in found)

        def one(number: int) -> Counter[str]:
            seed, path = number % SEEDS, Path(name) / f"run{number}.esperlog"
            found = kill(path, seed, random.Random(number), longest, ends[seed])
            if number % REPLAYED_EVERY == 0:
                found[REPLAYED] += forked(_replays, str(path))
            return found

        for counts in spread(one, range(KILLS), workers):
            total += counts
    write(
        "kills",
        f"{KILLS} training runs, each killed with SIGKILL at a random moment",
        [
            {
                "runs": name,
                "count": total[name],
                "of": KILLS // REPLAYED_EVERY if name == REPLAYED else KILLS,
            }
            for name in (*CHECKS, *MOMENTS)
        ],
        command="python benchmarks/live/kills.py",
        notes=[
            f"{SEEDS} seeds; a run is {STEPS} {workload.ABOUT}.",
            "The same end is the same digest of model, optimizer, schedule, average, generators.",
        ],
    )
    print(dict(total))


if __name__ == "__main__":
    main()
