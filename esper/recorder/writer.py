"""The recorder: appends events to a log, each in the hash chain, durable from `sync` on."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from esper.errors import EsperError, InputError, UsageError
from esper.recorder import canonical, chain, fingerprint, frames, kinds, sidecar
from esper.recorder.calls import Call
from esper.recorder.event import Event
from esper.recorder.happenings import Finished, Keyframe, Resumed
from esper.recorder.payload import Payload, Plain
from esper.recorder.sink import Sink
from esper.recorder.taker import Stateful

if TYPE_CHECKING:
    import torch


class _State(NamedTuple):
    """What the next frame continues; replaced as a whole, so an interrupt cannot split it."""

    end: int
    hash: bytes
    events: int
    sealed: int


class Recorder:
    """Writes the log of one run. Threads may share it; a forked process may not use it.

    An event is with the operating system when `event` returns: it survives the death of the
    process. From the next `sync` on it survives the death of the machine.

        with Recorder("run.esperlog") as recorder:
            recorder.event("run-started", run_started(seeds={"data": 0}))
            seen = recorder.event("observation", Observation(digest=...), agent="tamiyo")
            recorder.event("mask", Mask(heads=...), cause=seen, agent="tamiyo")
            recorder.sync()

    Args:
        path: of the log, a new file unless `resume`.
        run: name of the run; by default a random one. With `resume` it must be that of the log.
        resume: continue the log: True, or what `position` returned when the checkpoint was written
            that the run goes on from, which is then held against the log (as far as it says).
        restart: training state that the session given this recorder goes on from.
        clock: nanoseconds since 1970; None leaves times out, so that equal runs have equal logs.

    Attributes:
        tick: training step, put on every event; the run sets it.
        program: what a replay runs again, for the first event; `calls.program` sets it.
        keyframes: tick -> digest of the keyframes that are in the side directory.
        resumed: the event that this recorder wrote when it continued a log, else None.

    Raises:
        UsageError: the file exists (or, with `resume`, is that of another run or being written).
        InputError: the log to resume is missing or damaged, or lacks what the checkpoint names.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        run: str | None = None,
        resume: bool | Mapping[str, Any] = False,
        restart: Mapping[str, Any] | None = None,
        clock: Callable[[], int] | None = time.time_ns,
    ) -> None:
        self.path = Path(path)
        self.tick = 0
        self.program: Call | None = None
        self.keyframes: dict[int, str] = {}
        self._restart = restart
        self.resumed: Event | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = ""
        self._last = b""  # hash of the last event: seals come and go behind it
        if resume is False:
            self.run = run or f"run-{secrets.token_hex(4)}"
            start, head = frames.header(self.run)
            self._sink = Sink.create(self.path, start)
            self._state = _State(len(start), head, 0, 0)
        else:
            self._sink = Sink.open(self.path)
            try:
                self._continue(run, None if resume is True else resume)
            except BaseException:
                self._sink.close()
                raise

    @property
    def events(self) -> int:
        """How many events the log holds: the number of the next one."""
        return self._state.events

    @property
    def position(self) -> dict[str, Any]:
        """Where the log stands now, for a checkpoint: see `resume`."""
        state = self._state
        return {"run": self.run, "events": state.events, "head": self._last.hex()}

    def event(
        self,
        kind: str,
        payload: Payload | Mapping[str, Any],
        *,
        cause: int | Event | None = None,
        agent: str = "",
        target: str = "",
    ) -> Event:
        """Append an event.

        Args:
            kind: a key of `kinds.KINDS`, or one of your own (lower-case words joined by -).
            payload: the kind's type, or a mapping that fits it.
            cause: the event, or its number, because of which this one happened.
            agent: who did it.
            target: stable ID of the part that it is about.

        Raises:
            UsageError: payload or cause do not fit; or the recorder is closed, or another
                process's.
            OutputError: it could not be written; then it is not in the log, which stays good.
        """
        if not isinstance(payload, Payload):
            kinds.check_name(kind)
            payload = kinds.checked(kind, payload)
        elif payload.kind != kind:
            raise UsageError(f"a {kind} event cannot hold the payload of {payload.kind}")
        if isinstance(cause, Event):
            cause = cause.number
        self._check_usable()
        schema = payload.schema if isinstance(payload, Payload) else 0
        with self._lock:
            state = self._state
            number = state.events
            if cause is not None and not 0 <= cause < number:
                raise UsageError(f"event {number} cannot be caused by event {cause}")
            at = 0 if self._clock is None else self._clock()
            record = {
                "number": number,
                "tick": self.tick,
                "cause": cause,
                "kind": kind,
                "agent": agent,
                "target": target,
                "schema": schema,
                "time": at,
                "payload": vars(payload) if isinstance(payload, Payload) else payload,
            }
            self._append(frames.EVENT, canonical.encode(record), number + 1, state.sealed)
            tick = self.tick
        return Event(number, self.run, tick, cause, kind, agent, target, schema, at, payload)

    def sync(self) -> None:
        """Return when every event so far is on disk, and seal them. Raises OutputError."""
        self._check_usable()
        with self._lock:
            state = self._state
            if state.sealed == state.events:
                return
            try:
                self._sink.sync()
            except EsperError as error:
                # After a failed fsync the system may have dropped what it could not write.
                self._closed = f"{error}: what was recorded since event {state.sealed} may be lost"
                raise
            seal = frames.seal_payload(state.events, state.hash)
            self._append(frames.SEAL, seal, state.events, state.events)

    def tensors(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store tensors in the side directory and return the digest that events name them by."""
        self._check_usable()
        return sidecar.store(self.path, tensors)

    def keyframe(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        state: Plain | None = None,
        generators: Mapping[str, int] | None = None,
        cause: int | Event | None = None,
    ) -> Event:
        """Store the state of a run, from which a replay may start, and record where it is."""
        payload = Keyframe(
            digest=self.tensors(tensors),
            tensors=len(tensors),
            size=sidecar.size(tensors),
            state=dict(state or {}),
            generators=dict(generators or {}),
        )
        event = self.event("keyframe", payload, cause=cause)
        self.keyframes[event.tick] = payload.digest
        return event

    def forget(self, digest: str) -> None:
        """Remove a keyframe from the side directory; the event that names it stays."""
        self._check_usable()
        sidecar.remove(self.path, digest)
        self.keyframes = {t: own for t, own in self.keyframes.items() if own != digest}

    def attached(self, session: Stateful) -> None:
        """A session is ready: it goes on from `restart`, where that was given."""
        if self._restart is not None:
            session.load_state_dict(self._restart)
            self._restart = None

    def finish(self, status: str = "completed", reason: str = "") -> None:
        """Record that the run ended on purpose, and close."""
        self.event("finished", Finished(status=status, reason=reason))
        self.close()

    def close(self) -> None:
        """Sync and release the file; the log can be resumed. Closing again does nothing.

        In a forked process it only gives up the child's copy.
        """
        if self._pid != os.getpid():
            self._sink.close()
            return
        if self._closed:
            self._sink.close()
            return
        try:
            self.sync()
            with self._lock:
                self._sink.sync()  # the last seal too
        finally:
            self._closed = f"the recorder of {self.path} is closed"
            self._sink.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._closed or self._pid != os.getpid():
            self.close()
        elif error is None:
            self.finish()
        else:
            interrupted = isinstance(error, KeyboardInterrupt)
            text = str(error).strip().splitlines()
            reason = ": ".join([type(error).__name__, *text[:1]])
            self.finish("interrupted" if interrupted else "failed", reason)

    def _append(self, tag: bytes, payload: bytes, events: int, sealed: int) -> None:
        state = self._state
        data, found = frames.pack(state.hash, tag, payload)
        try:
            self._sink.write(data, state.end)
            self._state = _State(state.end + len(data), found, events, sealed)
            if tag == frames.EVENT:
                self._last = found
        except BaseException:
            # Interrupted or refused: the file ends where the chain does, before or after.
            try:
                self._sink.truncate(self._state.end)
            except EsperError as error:
                self._closed = f"{error}: a tail of it may be torn"
            raise

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise UsageError(
                f"{self.path} belongs to the process that opened it: this one was forked from it "
                "and may not record"
            )
        if self._closed:
            raise UsageError(self._closed)

    def _continue(self, run: str | None, position: Mapping[str, Any] | None) -> None:
        """Take over an existing log: check it, cut a torn tail off, say so in the log."""
        wanted = None if position is None else int(position["events"])
        head = last = ""
        tick = 0

        def each(frame: frames.Frame) -> None:
            nonlocal head, last, tick
            content = canonical.decode(frame.payload)
            tick, last = int(content["tick"]), frame.hash.hex()
            if content["kind"] == "keyframe":
                self.keyframes[tick] = str(content["payload"]["digest"])
            if wanted == content["number"] + 1:
                head = last

        with chain.open_log(self.path) as stream:
            found = chain.verify(stream, str(self.path), each)
        if not found.ok:
            raise InputError(found.reason)
        names = {run, None if position is None else str(position["run"])} - {None, found.run}
        if names:
            raise UsageError(f"{self.path} is the log of {found.run}, not of {names.pop()}")
        if position is not None and wanted and wanted > found.events:
            raise InputError(
                f"the checkpoint was written after event {wanted - 1}, and {self.path} ends with "
                f"event {found.events - 1}"
            )
        if position is not None and wanted and position.get("head", head) != head:
            raise InputError(
                f"event {wanted - 1} of {self.path} is not the one that the checkpoint was written "
                "after: it belongs to another life of this run"
            )
        self.run = found.run
        self.tick = tick
        if found.torn_bytes:
            self._sink.truncate(found.end)
        self._state = _State(found.end, bytes.fromhex(found.head), found.events, found.sealed)
        self._last = bytes.fromhex(last)
        lost = None if wanted is None or wanted == found.events else wanted - 1
        payload = Resumed(
            truncated_bytes=found.torn_bytes, lost_after=lost, platform=fingerprint.fingerprint()
        )
        self.resumed = self.event("resumed", payload)
