"""The one history that a log tells, where a run was killed and went on from an earlier state."""

from __future__ import annotations

from collections.abc import Iterable

from esper.recorder.event import Event


def surviving(events: Iterable[Event]) -> list[Event]:
    """Events of the life that went on, in order, without those that say that it did.

    What happened after the state that a later process went on from belongs to a life that was
    lost.
    """
    found: list[Event] = []
    for event in events:
        if event.kind == "resumed":
            lost_after = event.payload.lost_after
            while found and lost_after is not None and found[-1].number > lost_after:
                found.pop()
        else:
            found.append(event)
    return found
