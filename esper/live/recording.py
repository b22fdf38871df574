"""What a session writes into its flight record beyond proposals, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.errors import UsageError
from esper.recorder.calls import Call
from esper.recorder.payload import Plain


@dataclass(frozen=True)
class Recording:
    """How much a session records.

    Attributes:
        digests_every: boundaries between digests of graph, parameters and optimizer where nothing
            was proposed; 1 is at every boundary, 0 only where something was. A digest reads every
            tensor once.
        keyframes_every: boundaries between keyframes: the whole training state in the log's side
            directory, from which a replay may start and a killed run goes on. 0 takes none.
        keyframes: how many are kept, at least 2: when there are more, every other one goes and the
            distance doubles.
        sync_seconds: after which ticks are on disk for certain, should the machine die (what dies
            with the process alone loses nothing). A sync takes milliseconds, hence no tick's own;
            boundaries at which something was proposed are synced at once.
        config: of the run, as plain data.
        agents: name -> what makes its policy, so that its decisions can be replayed.
    """

    digests_every: int = 0
    keyframes_every: int = 0
    keyframes: int = 8
    sync_seconds: float = 2.0
    config: Plain = field(default_factory=dict)
    agents: Mapping[str, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.digests_every, self.keyframes_every, self.sync_seconds) < 0:
            raise UsageError("a recording's distances and seconds are not negative")
        if self.keyframes < 2:
            raise UsageError("at least 2 keyframes are kept")

    def digest_due(self, index: int) -> bool:
        """Whether a boundary has digests though nothing was proposed."""
        return bool(self.digests_every) and index % self.digests_every == 0

    def period(self, index: int) -> int:
        """Boundaries between the keyframes that are kept by now."""
        period = self.keyframes_every
        while index // period > self.keyframes:
            period *= 2
        return period

    def keyframe_due(self, index: int) -> bool:
        """Whether a keyframe is taken at the end of this boundary."""
        return bool(self.keyframes_every) and index % self.period(index) == 0
