"""Running a recorded program again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from esper.errors import InputError
from esper.recorder.calls import Call
from esper.recorder.event import Event
from esper.recorder.happenings import RunStarted
from esper.recorder.log import Log
from esper.replay.witness import Stop, Witness

Function = Callable[..., Any]


def program_of(log: Log, start: RunStarted, given: Function | None) -> Callable[[Any], Any]:
    """The run as a function of its recorder.

    Args:
        log: of the run.
        start: its first event.
        given: to be called instead of what the log names, with the same arguments.

    Raises:
        InputError: the log names no program and none is given, or it cannot be called.
    """
    named = start.config.get("program")
    if named is None and given is None:
        raise InputError(
            f"{log.path} names no program: mark it with @esper.program and record it again, or "
            "give --program FILE.py:fn"
        )
    call = Call("") if named is None else Call.parse(named)
    function = given or call.resolve()

    def run(recorder: Any) -> Any:
        return function(recorder, **call.arguments)

    return run


def run(program: Callable[[Any], Any], witness: Witness) -> None:
    """Run a program before a witness; what it prints goes to standard error."""
    failed: Exception | None = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            program(witness)
    except Stop:
        return
    except Exception as error:  # noqa: BLE001 - a recorded run may have ended so, too
        failed = error
    witness.ended(failed)


def at(log: Log, events: list[Event], code: str) -> tuple[Event, list[Event]]:
    """A keyframe by its code, and the events after it. Raises InputError."""
    event = log.find(code)
    after = [e for e in events if e.number > event.number]
    if event not in events:
        raise InputError(f"event {event.code} belongs to a life that was lost")
    return event, after
