"""Signals in any phase, and `kill -9` at any moment: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import esper
from esper.cli.shell import descendants
from tests.cli.forks import Run, Server
from tests.cli.support import assert_one_sentence, exported, saved, small

X = torch.linspace(-1, 1, 24).reshape(4, 6)
# Alignment is given, since the default is measured and may keep everything.
PRUNE = ["-p", "prune{ratio=0.5 align=1}", "--no-gate"]

USER = """
import pathlib, time
import torch
from torch import nn

here = pathlib.Path(__file__).parent

def wait(where):
    (here / ("at_" + where)).touch()
    time.sleep(60)

def inputs():
    wait("inputs")

def score(module):
    wait("eval")

def tune(module):
    wait("finetune")

class Slow(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        Slow.calls += 1
        if Slow.calls > 1:
            wait("trace")
        return self.linear(x)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interruptions")
    (folder / "model.pt2").write_bytes(exported())
    (folder / "user.py").write_text(USER)
    weights = {"linear.weight": torch.eye(6), "linear.bias": torch.zeros(6)}
    (folder / "weights.pt").write_bytes(saved(weights))
    esper.save(esper.trace(small(), (X,)), folder / "model.esper")
    os.mkfifo(folder / "pipe")
    (folder / "to_pipe.pt2").symlink_to(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    warm = ["model.pt2", *PRUNE, "-o", "warm.pt2"]
    with Server(folder, warm) as server:
        yield server


PHASES: dict[str, list[str]] = {
    "inputs": ["model.pt2", "--no-gate", "-O0", "--inputs", "user.py:inputs"],
    "trace": ["weights.pt", "--model", "user.py:Slow", "--inputs", "x=float32[4,6]", "-O0"],
    "eval": ["model.pt2", *PRUNE, "--eval", "user.py:score"],
    "finetune": ["model.pt2", *PRUNE, "--finetune", "user.py:tune"],
}


def interrupt(
    server: Server,
    folder: Path,
    argv: list[str],
    ready: Callable[[Run], bool],
    number: signal.Signals,
    stdin: str = os.devnull,
) -> None:
    """Start, wait until ready, signal, and check what is left."""
    output = folder / "out.pt2"
    output.write_bytes(b"the old file")
    if "-o" not in argv:
        argv = [*argv, "-o", "out.pt2"]
    run = server.start(argv, stdin)
    _until(lambda: ready(run), run)
    children = descendants(run.pid)
    os.kill(run.pid, number)
    status = run.wait()
    assert status == 130, run.stderr
    assert run.stderr == "esper-opt: error: interrupted: nothing was half-written\n"
    assert output.read_bytes() == b"the old file"
    assert not list(folder.glob("*.tmp"))
    _until(lambda: not any(_alive(pid) for pid in children), None)


def _until(condition: Callable[[], bool], run: Run | None) -> None:
    for _ in range(20000):
        if condition():
            return
        if run is not None and not _alive(run.pid):
            break
        time.sleep(0.002)
    raise AssertionError(f"it never came to that: {run.stderr if run else ''}")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_the_users_code(
    server: Server, folder: Path, phase: str, number: signal.Signals
) -> None:
    mark = folder / f"at_{phase}"
    mark.unlink(missing_ok=True)
    interrupt(server, folder, PHASES[phase], lambda run: mark.exists(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_reading(server: Server, folder: Path, number: signal.Signals) -> None:
    keep_open = os.open(folder / "pipe", os.O_RDWR)  # a pipe into which nobody writes
    try:
        argv = ["-", "-O0", "--no-gate"]

        def reading(run: Run) -> bool:
            time.sleep(0.5)
            return True

        interrupt(server, folder, argv, reading, number, stdin=str(folder / "pipe"))
    finally:
        os.close(keep_open)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_measuring(server: Server, folder: Path, number: signal.Signals) -> None:
    argv = ["model.pt2", "-p", "prune{ratio=0.5 align=1}", "--backend", "eager"]

    def measuring(run: Run) -> bool:
        return len(descendants(run.pid)) >= 2  # the measuring server and a measured process

    interrupt(server, folder, argv, measuring, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_writing(server: Server, folder: Path, number: signal.Signals) -> None:
    argv = ["model.esper", "--inputs", "x=float32[4,6]", "-O0", "--no-gate", "-o", "to_pipe.pt2"]

    def writing(run: Run) -> bool:
        """Blocked in opening a pipe that nobody reads."""
        state = Path(f"/proc/{run.pid}/wchan").read_text()
        time.sleep(0.2)
        return state == "wait_for_partner" or _syscall(run.pid) in ("2", "257")

    interrupt(server, folder, argv, writing, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_another_program(folder: Path, number: signal.Signals) -> None:
    """`esper` runs its commands inside the parser, which has an answer of its own."""
    mark = folder / "at_trace"
    mark.unlink(missing_ok=True)
    argv = "inspect weights.pt --model user.py:Slow --inputs x=float32[4,6]".split()
    command = [sys.executable, "-m", "esper.cli.main", *argv]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as running:
        while not mark.exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert said == "esper: error: interrupted: nothing was half-written\n"
    assert running.returncode == 130


def _syscall(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize("suffix", [".esper", ".pt2"])
def test_a_file_that_cannot_be_finished(server: Server, folder: Path, suffix: str) -> None:
    """A limit on the size of files stops the write half-way, as a full disk does."""
    output = folder / f"limited{suffix}"
    output.write_bytes(b"the old file")
    argv = ["model.esper", "--inputs", "x=float32[4,6]", "-O0", "--no-gate", "-o", output.name]
    run = server.start(argv, largest=1000)
    assert run.wait() == 2
    assert "File too large" in run.stderr
    assert_one_sentence(run.stderr)
    assert output.read_bytes() == b"the old file"
    assert not list(folder.glob("*.tmp"))


# -- kill -9 ---------------------------------------------------------------------------------------

KILLS = 50


def _hidden(path: Path) -> int:
    """Width of the hidden layer of a model file, which must be whole."""
    if path.suffix == ".esper":
        return int(esper.load(path).get_parameter("first.weight").shape[0])
    module = torch.export.load(path).module()
    assert module(X).shape == (4, 3)
    return int(module.get_parameter("first.weight").shape[0])


def test_kill_at_any_moment_leaves_the_old_file_or_the_new_one(
    server: Server, folder: Path
) -> None:
    generator = random.Random(0)
    whole = {suffix: _first_output(server, folder, suffix) for suffix in (".esper", ".pt2")}
    killed = 0
    for number in range(4 * KILLS):
        suffix = ".pt2" if number % 5 == 0 else ".esper"
        path = folder / f"kill{suffix}"
        seconds, before = whole[suffix]
        path.write_bytes(before)
        argv = ["model.esper", "--inputs", "x=float32[4,6]", *PRUNE, "-o", path.name]
        run = server.start(argv)
        time.sleep(generator.uniform(0, seconds))
        killed += _kill(run)
        assert path.read_bytes() == before or _hidden(path) == 4
        if killed == KILLS:
            break
    assert killed == KILLS


def test_kill_in_the_middle_of_writing(server: Server, folder: Path) -> None:
    """The temporary file is there when the process dies, and the old file is whole."""
    path = folder / "wide.esper"
    wide = torch.nn.Sequential(torch.nn.Linear(6, 100000), torch.nn.Linear(100000, 1))
    esper.save(esper.trace(wide, (X,)), folder / "wide_model.esper")
    in_the_middle = 0
    for _ in range(8):
        path.write_bytes(b"the old file")
        run = server.start(["wide_model.esper", "-O0", "--no-gate", "-o", path.name])
        while not _written(folder) and _alive(run.pid):
            time.sleep(0.001)
        _kill(run)
        left = list(folder.glob("wide.esper.*.tmp"))
        in_the_middle += bool(left)
        for file in left:
            file.unlink()
        if path.read_bytes() != b"the old file":
            assert esper.load(path).get_parameter("0.weight").shape == (100000, 6)
        else:
            assert left
    assert in_the_middle > 0


def _written(folder: Path) -> int:
    """Bytes in temporary files; one that only asks whether it could be written stays empty."""
    sizes = []
    for file in folder.glob("wide.esper.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return sum(sizes)


def _kill(run: Run) -> bool:
    """Kill -9; whether the run still ran."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pid, signal.SIGKILL)
    status = run.wait()
    assert status in (-signal.SIGKILL, 0), run.stderr
    return status != 0


def _first_output(server: Server, folder: Path, suffix: str) -> tuple[float, bytes]:
    """Seconds of a whole run, and the file of the uncut model."""
    path = folder / f"kill{suffix}"
    argv = ["model.esper", "--inputs", "x=float32[4,6]"]
    run = server.start([*argv, "-O0", "--no-gate", "-o", path.name])
    assert run.wait() == 0, run.stderr
    before = path.read_bytes()
    assert _hidden(path) == 8
    started = time.perf_counter()
    run = server.start([*argv, *PRUNE, "-o", path.name])
    assert run.wait() == 0, run.stderr
    seconds = time.perf_counter() - started
    assert _hidden(path) == 4
    return seconds, before
