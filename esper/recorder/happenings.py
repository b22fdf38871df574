"""Payloads of a run around its decisions: begin and end, ticks, lifecycles, probes, state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from esper.recorder.payload import Payload, Plain


@dataclass(frozen=True)
class RunStarted(Payload):
    """The first event of a run; `fingerprint.run_started` fills it in.

    Attributes:
        platform: what bitwise repetition depends on: versions, device, threads, flags.
        seeds: of the named random generators.
        config: of the run, as far as a replay needs it.
        model: digest of the graph and the parameters at the start.
    """

    kind: ClassVar[str] = "run-started"

    platform: Plain
    seeds: Mapping[str, int] = field(default_factory=dict)
    config: Plain = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class Resumed(Payload):
    """A process went on with this log. The recorder writes this event.

    Attributes:
        truncated_bytes: of a torn tail, which were cut off.
        lost_after: number of the last event that is part of the history the run went on from;
            later ones (up to this one) happened in a life that was lost. None: all are part of it.
        platform: as in run-started.
    """

    kind: ClassVar[str] = "resumed"

    truncated_bytes: int = 0
    lost_after: int | None = None
    platform: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Finished(Payload):
    """The run ended on purpose; status is completed, failed or interrupted."""

    kind: ClassVar[str] = "finished"

    status: str = "completed"
    reason: str = ""


@dataclass(frozen=True)
class Tick(Payload):
    """One training step.

    Attributes:
        loss: of the step.
        seconds: that it took.
        batch: digest of its data, for a full replay.
    """

    kind: ClassVar[str] = "tick"

    loss: float | None = None
    seconds: float | None = None
    batch: str = ""


@dataclass(frozen=True)
class Boundary(Payload):
    """A safe boundary was reached.

    Attributes:
        index: how many came before it.
        graph, parameters, optimizer: digests of the state, for a full replay.
        generators: name -> cursor of the named random generators.
        loss: recent loss, as the governor sees it.
    """

    kind: ClassVar[str] = "boundary"

    index: int
    graph: str = ""
    parameters: str = ""
    optimizer: str = ""
    generators: Mapping[str, int] = field(default_factory=dict)
    loss: float | None = None


@dataclass(frozen=True)
class Transition(Payload):
    """A seed, phage or slot (the event's target) went from one stage to another.

    Attributes:
        before, after: stages.
        gate: name of the gate that let it pass.
        criteria: criterion -> the figure that met it.
    """

    kind: ClassVar[str] = "transition"

    before: str
    after: str
    gate: str = ""
    criteria: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Probe(Payload):
    """A reversible probe (sedation, ablation) of the event's target, or a step of one.

    Attributes:
        probe: its kind.
        phase: started, stepped, ended.
        decision: what the stopping rule said, once it did.
        figures: paired differences, intervals, batches used.
    """

    kind: ClassVar[str] = "probe"

    probe: str
    phase: str = ""
    decision: str = ""
    figures: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Rollback(Payload):
    """The governor went back to an earlier boundary.

    Attributes:
        reason: one sentence.
        to: number of the event (a tick, boundary or keyframe) whose state was restored.
        charged: number of the latest proposal event that is held responsible, if any; figures
            name all of them.
        figures: that made it act.
    """

    kind: ClassVar[str] = "rollback"

    reason: str
    to: int | None = None
    charged: int | None = None
    figures: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Recompile(Payload):
    """A compiled part was compiled again.

    Attributes:
        what: name of the part.
        count: of compilations so far.
        seconds: that it took.
        reason: as the compiler gave it.
    """

    kind: ClassVar[str] = "recompile"

    what: str
    count: int
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Keyframe(Payload):
    """State that was put into the side directory, from which a replay may start.

    Attributes:
        digest: names the file (`Log.tensors` reads it).
        tensors: how many it holds.
        size: of them in bytes.
        state: what is no tensor (steps, schedulers, counters), as plain data.
        generators: name -> cursor.
    """

    kind: ClassVar[str] = "keyframe"

    digest: str
    tensors: int
    size: int
    state: Plain = field(default_factory=dict)
    generators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(Payload):
    """One number at the event's tick."""

    kind: ClassVar[str] = "metric"

    name: str
    value: float
