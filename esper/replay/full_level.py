"""Full replay: the program runs again, and every event must come out as it was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.live import keyframes
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.replay import choices, platform
from esper.replay import program as programs
from esper.replay.report import Report
from esper.replay.witness import Witness


def full(
    log: Log, *, program: Callable[..., Any] | None = None, start_at: str | None = None
) -> Report:
    """Run the recorded program again, from its start or from a keyframe.

    Losses, digests of weights, optimizer state and graphs, observations, masks, samples, proposals,
    verdicts and rewrites are compared, to the last bit on the platform of the recording.

    Args:
        log: of the run.
        program: called instead of the one that the log names, with the same arguments.
        start_at: code of a keyframe; by default the run's start.

    Raises:
        InputError: the log names no program that can be called, or no such keyframe.
    """
    events = surviving(log)
    start = platform.start_of(events, log.path)
    run = programs.program_of(log, start, program)
    notes: tuple[str, ...] = ()
    with platform.settings_of(start):
        differs = platform.differs(log, start)
        if start_at is None:
            witness = Witness(events, bitwise=not differs)
        else:
            event, after = programs.at(log, events, start_at)
            state = keyframes.read(log, event)
            witness = Witness(
                after,
                bitwise=not differs,
                begun=True,
                ready=lambda session: session.load_state_dict(state),
            )
            witness.tick = event.tick
            notes = (f"from the keyframe {event.code}, tick {event.tick}",)
        programs.run(run, witness)
    found = witness.divergence or choices.contradiction(events)
    return Report("full", dict(witness.compared), found, platform.note_of(differs) + notes)
