"""What a program writes to when it is run again: each event is held against the recording."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esper.recorder import kinds, sidecar
from esper.recorder.calls import Call
from esper.recorder.event import Event
from esper.recorder.happenings import Keyframe
from esper.recorder.payload import Payload, Plain
from esper.recorder.taker import Stateful
from esper.replay import compare
from esper.replay.report import Difference, Divergence

if TYPE_CHECKING:
    import torch


class Stop(BaseException):
    """The replay knows enough; no handler of the program's may take it for an error."""


class Witness:
    """Stands where a recorder stood (`esper.recorder.taker.EventTaker`).

    Args:
        recorded: events to come, in order.
        bitwise: whether values must be the same to the last bit.
        begun: whether the first event of the run lies before them.
        ready: is given the session when it is built.

    Attributes:
        divergence: the first one.
        compared: kind -> how many agreed.
        agreed: the last event that did.
    """

    def __init__(
        self,
        recorded: Sequence[Event],
        *,
        bitwise: bool,
        begun: bool = False,
        ready: Callable[[Any], None] | None = None,
    ) -> None:
        self.tick = 0
        self.program: Call | None = None
        self.keyframes: dict[int, str] = {}
        self.divergence: Divergence | None = None
        self.compared: Counter[str] = Counter()
        self.agreed: Event | None = None
        self._recorded = [event for event in recorded if event.kind not in compare.CHANCE]
        # A run that was killed has no end, even if an earlier life of it had finished.
        self._end = recorded[-1] if recorded and recorded[-1].kind == "finished" else None
        self._bitwise = bitwise
        self._begun = begun
        self._ready = ready
        self._next = 0

    @property
    def events(self) -> int:
        """How many there are."""
        return self._next + int(self._begun)

    @property
    def position(self) -> dict[str, Any]:
        """Nothing goes on from a replay."""
        return {}

    def event(
        self,
        kind: str,
        payload: Payload | Mapping[str, Any],
        *,
        cause: int | Event | None = None,
        agent: str = "",
        target: str = "",
    ) -> Event:
        """Compare the next event and return it as it was recorded.

        Raises:
            Stop: it differs, or the recording ends here.
        """
        if not isinstance(payload, Payload):
            kinds.check_name(kind)
            payload = kinds.checked(kind, payload)
        if kind in compare.CHANCE:
            return Event(0, "", self.tick, None, kind, agent, target, 0, 0, payload)
        if self._next == len(self._recorded):
            self._more(kind)
        event = self._recorded[self._next]
        number = cause.number if isinstance(cause, Event) else cause
        names = {"tick": self.tick, "kind": kind, "agent": agent, "target": target, "cause": number}
        found = [
            Difference(name, getattr(event, name), value)
            for name, value in names.items()
            if getattr(event, name) != value
        ]
        if event.kind == kind:
            found += compare.differences(
                kind,
                compare.payload(kind, event.payload),
                compare.payload(kind, payload),
                bitwise=self._bitwise,
            )
        if found:
            self._stop(Divergence(event, compare.blame(event, found), tuple(found), self.agreed))
        self._next += 1
        self.compared[kind] += 1
        self.agreed = event
        return event

    def tensors(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Their digest; nothing is stored."""
        return sidecar.tensors_digest(tensors)

    def keyframe(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        state: Plain | None = None,
        generators: Mapping[str, int] | None = None,
        cause: int | Event | None = None,
    ) -> Event:
        """Compare its digest."""
        payload = Keyframe(
            digest=sidecar.tensors_digest(tensors),
            tensors=len(tensors),
            size=sidecar.size(tensors),
            state=dict(state or {}),
            generators=dict(generators or {}),
        )
        return self.event("keyframe", payload, cause=cause)

    def forget(self, digest: str) -> None:
        """The recording keeps what it has."""

    def sync(self) -> None:
        """There is nothing to write."""

    def attached(self, session: Stateful) -> None:
        """The session is ready."""
        if self._ready is not None:
            self._ready(session)

    def finish(self, status: str = "completed", reason: str = "") -> None:
        """How a run ended is compared when its program has returned."""

    def ended(self, error: Exception | None) -> None:
        """The program returned or raised: is that how the recording ends?"""
        now = "completed" if error is None else f"failed: {type(error).__name__}"
        if self._next < len(self._recorded):
            event = self._recorded[self._next]
            why = "" if error is None else f": {error}"
            found = (Difference("kind", event.kind, f"the program {now}{why}"),)
            self.divergence = Divergence(event, compare.blame(event, []), found, self.agreed)
        elif self._end is not None and error is not None:
            before = f"{self._end.payload.status}: {self._end.payload.reason}".removesuffix(": ")
            if not before.startswith(now):
                found = (Difference("end", before, f"{now}: {error}"),)
                self.divergence = Divergence(self._end, "training", found, self.agreed)

    def _more(self, kind: str) -> None:
        """Something happens after the last recorded event."""
        if self._end is not None:
            found = [Difference("kind", "nothing", kind)]
            last = self.agreed or self._end
            blame = compare.blame(self._end, [Difference("kind", "finished", kind)])
            self._stop(Divergence(last, blame, tuple(found), self.agreed))
        raise Stop

    def _stop(self, divergence: Divergence) -> None:
        self.divergence = divergence
        raise Stop
