"""What a replay found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from esper.recorder import canonical
from esper.recorder.event import Event
from esper.recorder.log import Log
from esper.recorder.why import why

Level = Literal["decision", "pass", "full"]
Blame = Literal["policy", "mask", "wiring", "training", "data", "start"]

SENTENCES: dict[Blame, str] = {
    "policy": "from the same observation and mask the policy computes or chooses otherwise",
    "mask": "the same state admits other choices: a contract rule, or what masks are made from, "
    "has changed",
    "wiring": "the same choice leads to another proposal, resolved configuration or rewrite",
    "training": "the numbers that training computes differ: the code of the step, or the platform",
    "data": "the batch is another one",
    "start": "the run starts from another model, other seeds or another configuration",
}


@dataclass(frozen=True)
class Difference:
    """One field that came out otherwise."""

    field: str
    recorded: Any
    now: Any

    def text(self) -> str:
        """One line."""
        before, after = (_short(value) for value in (self.recorded, self.now))
        return f"{self.field or 'value'}: recorded {before}, now {after}"


@dataclass(frozen=True)
class Divergence:
    """The first event that came out otherwise.

    Attributes:
        event: as recorded; where nothing more was recorded, the last event there is.
        blame: what is responsible.
        differences: in which fields, the first few.
        agreed: the last event before it that was compared and agreed.
    """

    event: Event
    blame: Blame
    differences: tuple[Difference, ...]
    agreed: Event | None = None


@dataclass(frozen=True)
class Report:
    """What a replay compared, and whether it came out the same.

    Attributes:
        level: of the replay.
        compared: kind of event -> how many were compared.
        divergence: the first one, if there is one.
        notes: what was not compared, and why.
    """

    level: Level
    compared: dict[str, int] = field(default_factory=dict)
    divergence: Divergence | None = None
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether everything compared agreed."""
        return self.divergence is None

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON output."""
        found: dict[str, Any] = {
            "level": self.level,
            "equal": self.equal,
            "compared": self.compared,
            "notes": list(self.notes),
            "divergence": None,
        }
        first = self.divergence
        if first is not None:
            found["divergence"] = {
                "code": first.event.code,
                "event": first.event.as_data(),
                "blame": first.blame,
                "sentence": SENTENCES[first.blame],
                "differences": [vars(each) for each in first.differences],
                "agreed": None if first.agreed is None else first.agreed.code,
            }
        return canonical.spelled(canonical.plain(found))  # type: ignore[no-any-return]

    def text(self, log: Log) -> str:
        """For a person: the outcome, the first divergence, and the chain that led to it."""
        total = sum(self.compared.values())
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.compared.items()))
        lines = [f"{log.path}: {self.level} replay of {log.run}"]
        lines += [f"note: {note}" for note in self.notes]
        first = self.divergence
        if first is None:
            lines.append(f"equal: {total} events compared ({counts or 'there was nothing'})")
            return "\n".join(lines)
        event = first.event
        agreed = f"; last agreed {first.agreed.code}" if first.agreed is not None else ""
        where = f" of {event.target}" if event.target else ""
        who = f" by {event.agent}" if event.agent else ""
        lines.append(f"diverges at {event.code}, tick {event.tick}, {event.kind}{where}{who}")
        lines += [f"  {difference.text()}" for difference in first.differences]
        lines.append(f"{total} events agreed before{agreed}")
        lines.append(f"verdict: {first.blame}: {SENTENCES[first.blame]}")
        lines += ["", why(log, event)]
        return "\n".join(lines)


def _short(value: Any) -> str:
    text = canonical.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."
