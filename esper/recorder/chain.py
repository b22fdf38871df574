"""Where a log is good, and where not: the one reading that writers, readers and `verify` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from esper.errors import InputError
from esper.recorder import canonical, frames


@dataclass(frozen=True)
class Verification:
    """What a log is worth.

    Attributes:
        ok: nothing that an fsync had promised is damaged. A torn tail is ok: it was not promised.
        run: whose log it is, "" if its header is damaged.
        events: good ones, from the first.
        sealed: how many of them were on disk for certain, by the last seal.
        end: length in bytes of the good beginning.
        torn_bytes: of a tail that is ignored, 0 if there is none or it counts as damage.
        first_bad: number of the first damaged record (an event's number; that of the event after
            it for a damaged seal; -1 for the header), None if ok.
        head: hash of the last good frame, in hexadecimal: whoever keeps it can hold the log to it.
        reason: one sentence.
    """

    ok: bool = True
    run: str = ""
    events: int = 0
    sealed: int = 0
    end: int = 0
    torn_bytes: int = 0
    first_bad: int | None = None
    head: str = ""
    reason: str = ""


def verify(
    stream: BinaryIO, name: str, each: Callable[[frames.Frame], None] | None = None
) -> Verification:
    """Read a whole log and judge it.

    Args:
        stream: the file.
        name: of it, for sentences.
        each: is given every good event's frame, in order.

    Raises:
        InputError: the file is no log at all.
    """
    frames.read_start(stream, name)
    found = Verification(end=len(frames.START), head=frames.genesis().hex())
    try:
        for frame in frames.read(stream, frames.genesis(), found.end):
            found = _with(found, frame, each)
        if not found.run:
            raise frames.BrokenError(found.end, "it is cut off")
    except frames.BrokenError as broken:
        return _broken(stream, name, broken, found)
    return replace(found, reason=_good(name, found))


def _with(
    before: Verification, frame: frames.Frame, each: Callable[[frames.Frame], None] | None
) -> Verification:
    content = _content(frame, first=not before.run)
    run, events, sealed = before.run, before.events, before.sealed
    if frame.tag == frames.HEAD:
        run = content["run"]
    elif frame.tag == frames.SEAL:
        if content != {"events": events, "head": before.head}:
            raise frames.BrokenError(frame.start, "the seal is of other events")
        sealed = events
    else:
        if content["number"] != events:
            raise frames.BrokenError(frame.start, f"its number is {content['number']}")
        if each is not None:
            each(frame)
        events += 1
    return Verification(run=run, events=events, sealed=sealed, end=frame.end, head=frame.hash.hex())


def _content(frame: frames.Frame, *, first: bool) -> dict[str, Any]:
    """The decoded payload of a frame that may stand here."""
    if (frame.tag == frames.HEAD) != first:
        raise frames.BrokenError(frame.start, "it stands where no such record may stand")
    try:
        found: dict[str, Any] = canonical.decode(frame.payload)
        needed = {frames.HEAD: "run", frames.SEAL: "head"}.get(frame.tag, "number")
        found[needed]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError) as error:
        raise frames.BrokenError(frame.start, "it is not what a recorder writes") from error
    return found


def _broken(
    stream: BinaryIO, name: str, broken: frames.BrokenError, good: Verification
) -> Verification:
    at = f"at byte {broken.offset}"
    if not good.run:
        reason = f"{name} is damaged: its header, {at}: {broken.reason}"
        return replace(good, ok=False, first_bad=-1, reason=reason)
    if frames.sealed_after(stream, broken.offset):
        reason = (
            f"{name} is damaged: record {good.events} {at} is the first bad one: "
            f"{broken.reason}; {_events(good.events)} before it are good"
        )
        return replace(good, ok=False, first_bad=good.events, reason=reason)
    torn = frames.size(stream) - broken.offset
    reason = f"{_good(name, good)}; its tail is torn {at} and {torn} bytes are ignored"
    return replace(good, torn_bytes=torn, reason=reason)


def _good(name: str, good: Verification) -> str:
    seals = "all sealed" if good.sealed == good.events else f"{good.sealed} of them sealed"
    return f"{name} holds {_events(good.events)}, {seals}"


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"


def verify_path(path: Path) -> Verification:
    """`verify` of a file by name. Raises InputError where it cannot be read or is no log."""
    with open_log(path) as stream:
        return verify(stream, str(path))


def open_log(path: Path) -> BinaryIO:
    """Open a log for reading. Raises InputError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
