"""Starts measured processes, follows their progress, and stops them without leftovers."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import esper
from esper.errors import GateError
from esper.gate.worker import Spec

Progress = Callable[[int, int], None]
"""Called with (rounds done, rounds) of the running process."""


class _ChildError(GateError):
    """One measured process ended badly, and is known to have ended."""


class Launcher:
    """A context that runs specs one after another, each in a process of its own.

    Entering costs nothing; the first CPU spec starts a server that imports torch once and forks
    (see `worker`). Share one launcher among comparisons to pay for that once. Leaving, also by an
    exception or Ctrl-C, kills whatever still runs.
    """

    def __init__(self, startup_seconds: float = 120.0) -> None:
        self._startup_seconds = startup_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._buffer = b""
        self._count = 0
        self._threads = 0

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="esper-gate-")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise GateError("a Launcher must be entered with `with` before use.")
        return Path(self._directory.name)

    def close(self) -> None:
        """Kill the running processes and remove temporary files."""
        self._stop()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def run(self, spec: Spec, timeout: float, progress: Progress | None = None) -> dict[str, Any]:
        """Measure `spec` in a new process and return the fields of its `result` line.

        Raises GateError when the process fails, dies or exceeds `timeout` seconds.
        """
        self._count += 1
        base = self.directory / f"process{self._count}"
        spec_path, errors = base.with_suffix(".json"), base.with_suffix(".stderr")
        spec_path.write_text(json.dumps(asdict(spec)))
        errors.touch()
        forks = spec.device == "cpu" and hasattr(os, "fork")
        try:
            if forks:
                self._serve(spec.threads)
                self._send({"spec": str(spec_path), "stderr": str(errors)})
            else:
                self._start([str(spec_path)], errors.open("wb"), spec.threads)
            return self._collect(errors, timeout, forks, progress)
        except _ChildError:
            raise  # the server itself is well
        except BaseException:
            # Interrupted or out of time: the server's state is unknown, a later run starts anew.
            self._stop()
            raise
        finally:
            if not forks:
                self._stop()

    def _serve(self, threads: int) -> None:
        if self._process is not None and self._process.poll() is None:
            if threads == self._threads:
                return
            self._stop()
        errors = self.directory / "server.stderr"
        self._start(["--serve", str(self.directory)], errors.open("wb"), threads)
        self._threads = threads
        for event in self._events(time.monotonic() + self._startup_seconds):
            if event["event"] == "serving":
                return
        raise GateError(f"the measuring server did not start: {_tail(errors)}")

    def _start(self, arguments: list[str], errors: IO[bytes], threads: int) -> None:
        environment = dict(os.environ)
        root = str(Path(esper.__file__).resolve().parents[1])
        inherited = [p for p in sys.path if p] + [environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join([root, *[p for p in inherited if p]])
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(threads)
        self._buffer = b""
        with errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "esper.gate.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def _send(self, message: dict[str, str]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((json.dumps(message) + "\n").encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            tail = _tail(self.directory / "server.stderr")
            raise GateError(f"the measuring server is gone: {tail}") from error

    def _events(self, deadline: float) -> Iterator[dict[str, Any]]:
        """JSON lines of the process until it closes its output; GateError past the deadline."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                while b"\n" in self._buffer:
                    line, self._buffer = self._buffer.split(b"\n", 1)
                    if (event := _parse(line)) is not None:
                        yield event
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not selector.select(remaining):
                    raise GateError("a measured process exceeded its time limit and was stopped.")
                chunk = os.read(descriptor, 1 << 16)
                if not chunk:
                    return
                self._buffer += chunk

    def _collect(
        self, errors: Path, timeout: float, forks: bool, progress: Progress | None
    ) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        failure: str | None = None
        code: int | None = None
        for event in self._events(time.monotonic() + timeout):
            if event["event"] == "round" and progress is not None:
                progress(event["done"], event["rounds"])
            elif event["event"] == "result":
                result = event
            elif event["event"] == "error":
                failure = str(event["message"])
            elif event["event"] == "exit":
                code = int(event["code"])
                break
        if code is None and self._process is not None:
            code = self._process.wait(timeout=10)
        if failure is not None:
            raise _ChildError(f"a measured process failed: {failure}")
        if result is None or code != 0:
            raise _ChildError(f"a measured process died ({_death(code)}): {_tail(errors)}")
        return result

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # Its session holds the server and the child that measures.
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event on a line; None for what a library printed to standard output."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def _tail(path: Path, lines: int = 5) -> str:
    """The last lines of a file as one line."""
    text = path.read_text(errors="replace").strip().splitlines()[-lines:] if path.exists() else []
    return " | ".join(line.strip() for line in text) or "it printed nothing"
