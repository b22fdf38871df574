"""Within a recording: was what heads chose also what was going to be applied?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.recorder.decisions import HeadSample, ResolvedConfig
from esper.recorder.event import Event
from esper.replay.report import Difference, Divergence

#: Heads whose choices are values of fields of the resolved configuration.
HEADS = ("blueprint", "blend", "curve", "init")


def chain_of(events: Mapping[int, Event], event: Event) -> list[Event]:
    """The causes of an event, nearest first, as far as they survived."""
    found: list[Event] = []
    cause = event.cause
    while cause is not None and cause in events:
        found.append(events[cause])
        cause = events[cause].cause
    return found


def contradiction(events: Sequence[Event]) -> Divergence | None:
    """The first resolved configuration that is not what its decision chose."""
    known = {event.number: event for event in events}
    for event in events:
        if not isinstance(event.payload, ResolvedConfig):
            continue
        chosen = {}
        for cause in chain_of(known, event):
            if isinstance(cause.payload, HeadSample):
                chosen[cause.payload.head] = cause.payload.choices[cause.payload.chosen]
        found = []
        for head in HEADS:
            applied = getattr(event.payload, head)
            if head in chosen and applied and applied != chosen[head]:
                found.append(Difference(f"{head} (sampled, then resolved)", chosen[head], applied))
        if found:
            return Divergence(event, "wiring", tuple(found))
    return None
