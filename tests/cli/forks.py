"""Runs of `esper-opt` in processes of their own that start at once.

A server imports everything and does one run; every further run is a fork of it. So a test can
afford many real processes, send them real signals, and look at what they leave behind.

    python -m tests.cli.forks      # the server: one JSON line in, one line out for each run
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """One forked run; `status` is the exit code, negative for a signal."""

    server: Server
    pid: int
    stderr_path: Path

    def wait(self) -> int:
        """Exit code, or minus the signal that ended it."""
        return int(self.server.answer()["status"])

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()


class Server:
    """A context that starts the server and stops it with whatever still runs."""

    def __init__(self, folder: Path, warm: list[str]) -> None:
        self._folder, self._warm, self._count = folder, warm, 0

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.forks", json.dumps(self._warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=self._folder,
        )
        self.warm_seconds = float(self.answer()["seconds"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def start(self, argv: list[str], stdin: str = os.devnull, largest: int = -1) -> Run:
        """Fork a run of `esper-opt`; `largest` limits the bytes of every file that it writes."""
        self._count += 1
        stderr = self._folder / f"stderr{self._count}.txt"
        message = {"argv": argv, "stdin": stdin, "stderr": str(stderr), "largest": largest}
        stream = self._stream(self._process.stdin)
        stream.write((json.dumps(message) + "\n").encode())
        stream.flush()
        return Run(self, int(self.answer()["pid"]), stderr)

    def answer(self) -> dict[str, float]:
        """The next line of the server."""
        line = self._stream(self._process.stdout).readline()
        assert line, "the server has died"
        found: dict[str, float] = json.loads(line)
        return found

    @staticmethod
    def _stream(stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream


def _say(**values: float) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _serve(warm: list[str]) -> None:
    import torch

    from esper.cli.opt import main

    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr
    for _ in range(2):
        started = time.perf_counter()
        assert main(warm) == 0
    sys.stdout = out
    _say(seconds=time.perf_counter() - started)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        _say(pid=pid)
        _, status = os.waitpid(pid, 0)
        _say(status=os.waitstatus_to_exitcode(status))


def _child(request: dict[str, Any]) -> None:
    from esper.cli.opt import main

    code = 70
    try:
        os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
        sys.stdin = open(0)  # noqa: SIM115 - it lives as long as the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(request["stderr"], os.O_WRONLY | os.O_CREAT), 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"], request["largest"]))
        code = main(list(request["argv"]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
