"""Keyframes: whole training states beside a log, written by a session, read by what goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from esper.errors import InputError
from esper.live import packing
from esper.live.recording import Recording
from esper.recorder.event import Event
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.recorder.sidecar import tensors_digest
from esper.recorder.taker import EventTaker
from esper.recorder.writer import Recorder

KIND = "keyframe"


def write(
    recorder: EventTaker,
    recording: Recording,
    tick: int,
    state: Mapping[str, Any],
    cursors: Mapping[str, int],
) -> None:
    """Store a state and remove those that the schedule no longer keeps."""
    state = {**state, "recorder": None}
    known = {"tick": tick, "content": content(state)}
    recorder.keyframe(packing.pack(state), state=known, generators=cursors)
    recorder.sync()
    period = recording.period(tick)
    for earlier, digest in list(recorder.keyframes.items()):
        if earlier % period:
            recorder.forget(digest)


def content(state: Mapping[str, Any]) -> str:
    """Digest of what a run must come to again: all but the generators that it may not have seeded.

    A fresh process seeds those of Python and NumPy from the system.
    """
    chance = {name: state["random"][name] for name in ("torch", "cuda")}
    return tensors_digest(packing.pack({**state, "random": chance}))


def read(log: Log, event: Event) -> dict[str, Any]:
    """The state of a keyframe.

    Raises:
        InputError: the event is none, its file is missing or damaged.
    """
    if event.kind != KIND:
        raise InputError(f"event {event.code} of {log.path} is a {event.kind}, not a keyframe")
    return packing.unpack(log.tensors(event.payload.digest))


def last(log: Log) -> Event | None:
    """The last keyframe of the history that the log ends with, if it has one."""
    return next((e for e in reversed(surviving(log)) if e.kind == KIND), None)


def continued(path: str | os.PathLike[str]) -> Recorder:
    """A recorder that goes on with the log of a run that ended early, from its last keyframe.

    The session that is given this recorder starts in the keyframe's state; without a keyframe it
    starts anew, and the log says that everything after its first event was lost.

    Raises:
        InputError: the log or the keyframe cannot be read.
    """
    log = Log(path)
    event = last(log)
    if not len(log):  # killed before its first event: nothing is lost
        os.unlink(path)
        return Recorder(path, run=log.run)
    if event is None:
        return Recorder(path, resume={"run": log.run, "events": 1})
    state = read(log, event)
    return Recorder(path, resume={"run": log.run, "events": event.number + 1}, restart=state)
