"""An event: one edge of the causal graph of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.recorder import canonical
from esper.recorder.codes import codes
from esper.recorder.kinds import parsed


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, and what it happened because of.

    Attributes:
        number: place in the log, from 0.
        run: whose log it is.
        tick: training step at which it happened.
        cause: number of the event that caused it, None for a root.
        kind: a key of `kinds.KINDS`, or a kind of the writer's own.
        agent: who did it, "" for the run itself.
        target: stable ID of the part that it is about, "" for the whole.
        schema: version of the payload's fields.
        time: nanoseconds since 1970, 0 if the recorder had no clock.
        payload: typed (`KINDS[kind]`), or plain data.
    """

    number: int
    run: str
    tick: int
    cause: int | None
    kind: str
    agent: str
    target: str
    schema: int
    time: int
    payload: Any

    @property
    def code(self) -> str:
        """The short code that figures and log lines carry."""
        return codes(self.run).code(self.number)

    def as_data(self) -> dict[str, Any]:
        """Plain data, with the code, for JSON output."""
        return {
            "number": self.number,
            "code": self.code,
            "run": self.run,
            "tick": self.tick,
            "cause": self.cause,
            "kind": self.kind,
            "agent": self.agent,
            "target": self.target,
            "schema": self.schema,
            "time": self.time,
            "payload": canonical.plain(self.payload),
        }


def from_record(run: str, record: dict[str, Any]) -> Event:
    """The event of a decoded record."""
    return Event(
        number=record["number"],
        run=run,
        tick=record["tick"],
        cause=record["cause"],
        kind=record["kind"],
        agent=record["agent"],
        target=record["target"],
        schema=record["schema"],
        time=record["time"],
        payload=parsed(record["kind"], record["schema"], record["payload"]),
    )
