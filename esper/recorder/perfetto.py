"""A log as a Chrome JSON trace, which ui.perfetto.dev and chrome://tracing open.

Time is the tick, one millisecond each, so that a trace does not depend on the clock. Every slot
and phage has a row with its stages as slices; agents have rows with their decisions; metrics and
losses are counters. Names carry the code of the event.

Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from esper.ir.atomic import atomic_write
from esper.recorder import canonical
from esper.recorder.event import Event
from esper.recorder.happenings import Metric, Tick, Transition
from esper.recorder.log import Log

_TICK = 1000  # microseconds


def trace(log: Log) -> dict[str, Any]:
    """The trace as plain data."""
    rows: dict[str, int] = {}
    made: list[dict[str, Any]] = []
    stages: dict[str, tuple[str, Event]] = {}
    last = 0
    for event in log:
        last = max(last, event.tick)
        payload = event.payload
        if isinstance(payload, Transition):
            begun = stages.get(event.target)
            if begun is not None:
                made.append(_slice(rows, event.target, *begun, event.tick))
            stages[event.target] = (payload.after, event)
        elif isinstance(payload, Metric):
            made.append(_counter(payload.name, event.tick, payload.value))
        elif isinstance(payload, Tick):
            if payload.loss is not None:
                made.append(_counter("loss", event.tick, payload.loss))
        else:
            made.append(_instant(rows, event))
    for target, begun in stages.items():
        made.append(_slice(rows, target, *begun, last + 1))
    names = [
        {"ph": "M", "pid": 1, "tid": row, "name": "thread_name", "args": {"name": name}}
        for name, row in rows.items()
    ]
    return {"traceEvents": [*names, *made], "otherData": {"run": log.run}}


def export_perfetto(log: Log, path: Path) -> None:
    """Write the trace. Raises OutputError."""
    text = json.dumps(canonical.spelled(trace(log)), sort_keys=True)
    with atomic_write(path) as stream:
        stream.write(text.encode())


def _row(rows: dict[str, int], name: str) -> int:
    return rows.setdefault(name, len(rows) + 1)


def _slice(rows: dict[str, int], target: str, stage: str, event: Event, end: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 1,
        "tid": _row(rows, target),
        "ts": event.tick * _TICK,
        "dur": max(end - event.tick, 1) * _TICK,
        "name": f"{stage} {event.code}",
        "args": canonical.plain(event.payload),
    }


def _instant(rows: dict[str, int], event: Event) -> dict[str, Any]:
    return {
        "ph": "i",
        "s": "t",
        "pid": 1,
        "tid": _row(rows, event.agent or "run"),
        "ts": event.tick * _TICK,
        "name": f"{event.kind} {event.code}",
        "args": {"target": event.target, **_plain(event.payload)},
    }


def _plain(payload: Any) -> dict[str, Any]:
    found = canonical.plain(payload)
    return found if isinstance(found, dict) else {"payload": found}


def _counter(name: str, tick: int, value: float) -> dict[str, Any]:
    return {"ph": "C", "pid": 1, "ts": tick * _TICK, "name": name, "args": {"value": value}}
