"""What a session and its agents write events to: a recorder, or a replay that compares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from esper.recorder.event import Event
from esper.recorder.payload import Payload, Plain

if TYPE_CHECKING:
    import torch

    from esper.recorder.calls import Call


class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""


class EventTaker(Protocol):
    """What `Recorder` and `esper.replay.Witness` have in common.

    Attributes:
        tick: training step, put on every event.
        program: what a replay runs again, where it is known.
        keyframes: tick -> digest of the keyframes that can be read.
    """

    tick: int
    program: Call | None
    keyframes: dict[int, str]

    @property
    def events(self) -> int:
        """How many events there are: 0 before the first."""

    @property
    def position(self) -> dict[str, Any]:
        """Where the log stands now, for a checkpoint."""

    def event(
        self,
        kind: str,
        payload: Payload | Mapping[str, Any],
        *,
        cause: int | Event | None = None,
        agent: str = "",
        target: str = "",
    ) -> Event:
        """Append an event."""

    def tensors(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store tensors and return the digest that events name them by."""

    def keyframe(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        state: Plain | None = None,
        generators: Mapping[str, int] | None = None,
        cause: int | Event | None = None,
    ) -> Event:
        """Store the state of a run, from which a replay may start."""

    def forget(self, digest: str) -> None:
        """Remove the tensors of an earlier keyframe."""

    def sync(self) -> None:
        """Return when every event so far is on disk."""

    def attached(self, session: Stateful) -> None:
        """A session that is ready writes here from now on."""

    def finish(self, status: str = "completed", reason: str = "") -> None:
        """Record that the run ended on purpose, and close."""
