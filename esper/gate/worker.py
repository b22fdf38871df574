"""The process that measures: `python -m esper.gate.worker SPEC.json` or `--serve DIRECTORY`.

One measured process loads all contenders (in random order, so that placement in memory is noise
and not bias), warms them up, and times them in rounds. Results go to standard output as JSON
lines: `ready`, `round` (progress), `result`, `error`.

`--serve` imports torch once and forks a new process for every spec it reads; nothing has run
in the parent, so each child starts without thread pools, caches or memory of the others. It costs
a tenth of a fresh interpreter, which buys more processes for the same time. With CUDA, or where
fork does not exist, every measured process is a fresh interpreter instead.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.gate.steps import Step


@dataclass(frozen=True)
class Contender:
    """A prepared model: which backend loads which directory."""

    backend: str
    directory: str


@dataclass(frozen=True)
class Spec:
    """One measured process. `rounds` and `repeats` are None in the first process, which sets them
    from `seconds` (measuring time) and `visit_seconds` (least timed stretch). `deadline`, a
    `time.monotonic()`, which all processes of a machine share, makes it set fewer than
    `min_rounds` if need be, but not less than `least_rounds`.
    """

    contenders: tuple[Contender, ...]
    inputs: str
    objective: str
    device: str
    threads: int
    seed: int
    seconds: float
    visit_seconds: float
    warmup_seconds: float
    min_rounds: int
    max_rounds: int
    least_rounds: int
    settle: bool
    deadline: float | None = None
    rounds: int | None = None
    repeats: tuple[int, ...] | None = None
    modules: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Spec:
        data = json.loads(path.read_text())
        data["contenders"] = tuple(Contender(**c) for c in data["contenders"])
        data["repeats"] = None if data["repeats"] is None else tuple(data["repeats"])
        data["modules"] = tuple(data["modules"])
        return cls(**data)


def emit(event: str, **fields: object) -> None:
    """One JSON line to standard output, past any buffer."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


def measure(spec: Spec) -> None:
    """Load, warm up, time and check; emits `result`."""
    import torch

    torch.set_num_threads(spec.threads)
    for module in spec.modules:
        importlib.import_module(module)
    from esper.gate.calls_file import load_calls
    from esper.gate.steps import build_step

    rng = random.Random(spec.seed)
    torch.manual_seed(spec.seed)
    calls = load_calls(Path(spec.inputs), spec.device)
    order = list(range(len(spec.contenders)))
    rng.shuffle(order)
    started = time.perf_counter()
    steps: dict[int, Step] = {}
    for index in order:
        contender = spec.contenders[index]
        steps[index] = build_step(contender.backend, contender.directory, calls, spec)
    emit("ready", seconds=time.perf_counter() - started)
    run = [steps[i] for i in range(len(steps))]
    shapes = range(len(calls))
    for step in run:
        step.remember()
    estimates = warm_up(run, len(calls), spec.warmup_seconds)
    repeats = spec.repeats or tuple(
        max(1, round(spec.visit_seconds / max(estimates[s]))) for s in shapes
    )
    left = None
    if spec.deadline is not None:
        # Rounds that take no longer than what came before them are not worth saving.
        left = max(spec.deadline - time.monotonic(), time.perf_counter() - started)
    rounds = spec.rounds or choose_rounds(estimates, repeats, spec, left)
    gc.collect()
    gc.freeze()
    gc.disable()
    times: list[list[list[int]]] = []
    told = time.perf_counter()
    for number in range(rounds):
        row = [[0] * len(run) for _ in shapes]
        for shape in shapes:
            rng.shuffle(order)
            for index in order:
                if spec.settle:
                    run[index].settle(shape)
                row[shape][index] = run[index].time(shape, repeats[shape])
        times.append(row)
        if time.perf_counter() - told > 0.5:
            told = time.perf_counter()
            emit("round", done=number + 1, rounds=rounds)
    gc.enable()
    for index, step in enumerate(run):
        step.verify(f"contender {index} ({spec.contenders[index].backend})")
    emit("result", times=times, rounds=rounds, repeats=list(repeats), process=os.getpid())


def warm_up(run: list[Step], shapes: int, seconds: float) -> list[list[float]]:
    """Run everything for at least `seconds`; the last time of each step, [shape][contender]."""
    estimates = [[0.0] * len(run) for _ in range(shapes)]
    deadline = time.perf_counter() + seconds
    passes = 0
    while passes < 2 or time.perf_counter() < deadline:
        for shape in range(shapes):
            for index, step in enumerate(run):
                estimates[shape][index] = max(step.time(shape, 1), 1000) / 1e9
        passes += 1
    return estimates


def choose_rounds(
    estimates: list[list[float]], repeats: tuple[int, ...], spec: Spec, left: float | None
) -> int:
    """As many rounds as fit into `spec.seconds`, within limits, and into the seconds `left`."""
    extra = 1 if spec.settle else 0
    one = sum(sum(row) * (repeats[s] + extra) for s, row in enumerate(estimates))
    rounds = max(spec.min_rounds, min(spec.max_rounds, int(spec.seconds / one)))
    if left is None:
        return rounds
    # One more step of each follows the last round, to verify what was computed.
    verifying = sum(map(sum, estimates))
    return min(rounds, max(spec.least_rounds, int((left - verifying) / one)))


def run_spec(path: Path) -> int:
    """Measure one spec in this process; the exit code."""
    try:
        measure(Spec.read(path))
    except BrokenPipeError:
        return 1
    except BaseException as error:  # noqa: BLE001  (all of it is told to the caller)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        text = " ".join(str(error).split()) or type(error).__name__
        emit("error", kind=type(error).__name__, message=text)
        return 1
    return 0


def prepare_job(path: Path) -> str | None:
    """Load what can be loaded before forking; the reason if that failed."""
    from esper.gate.transport import ARTIFACT, preload

    try:
        spec = Spec.read(path)
        for module in spec.modules:
            importlib.import_module(module)
        for directory in {c.directory for c in spec.contenders if c.backend == "eager"}:
            preload(Path(directory) / ARTIFACT)
    except Exception as error:  # noqa: BLE001  (told to the caller)
        return " ".join(str(error).split()) or type(error).__name__
    return None


def serve(directory: Path) -> int:
    """Fork one child for each line `{"spec": path, "stderr": path}` until standard input ends.

    The caller stops this process by a signal, so the end of standard input means that the caller
    is gone: a child that measures is killed, and the caller's temporary files are removed.
    """
    import torch

    import esper.gate.calls_file
    import esper.gate.steps
    import esper.ir.artifact  # noqa: F401

    # No thread pool may exist when forking; each child sets its own number of threads.
    torch.set_num_threads(1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    emit("serving")
    pending = b""
    while True:
        while b"\n" not in pending:
            chunk = os.read(0, 65536)
            if not chunk:
                shutil.rmtree(directory, ignore_errors=True)
                return 0
            pending += chunk
        line, pending = pending.split(b"\n", 1)
        job = json.loads(line)
        if (failure := prepare_job(Path(job["spec"]))) is not None:
            emit("error", message=failure)
            emit("exit", code=1)
            continue
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            descriptor = os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, 2)
            os.close(0)
            os._exit(run_spec(Path(job["spec"])))
        status = 0
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            readable, _, _ = select.select([0, wake_read], [], [])
            if wake_read in readable:
                os.read(wake_read, 4096)
            elif 0 in readable:
                # The protocol has one job at a time, so readable input here means it was closed.
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                shutil.rmtree(directory, ignore_errors=True)
                return 1
        emit("exit", code=os.waitstatus_to_exitcode(status))


def main(arguments: list[str]) -> int:
    """Entry point; the exit status."""
    # The caller stops this process group itself; a Ctrl-C meant for it must not race with that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if len(arguments) == 2 and arguments[0] == "--serve":
        return serve(Path(arguments[1]))
    if len(arguments) == 1:
        return run_spec(Path(arguments[0]))
    sys.stderr.write("usage: python -m esper.gate.worker SPEC.json | --serve DIRECTORY\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
