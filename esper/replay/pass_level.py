"""Pass replay: recorded proposals go through the pass manager again, without training."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from esper import propose
from esper.ecology.ledger import acts
from esper.errors import InputError
from esper.ir.ecology import SlotLife
from esper.live import checkpoint, keyframes
from esper.live.diary import graph_digest, resolved
from esper.live.governor import charge
from esper.manager import PassManager
from esper.recorder.decisions import Proposed, ResolvedConfig, Rewrite, Verdict
from esper.recorder.event import Event
from esper.recorder.happenings import Keyframe, Metric, Rollback, Transition
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.recorder.sidecar import directory, tensors_digest
from esper.replay import choices, compare, platform
from esper.replay import program as programs
from esper.replay.report import Difference, Divergence, Report
from esper.replay.witness import Stop, Witness

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.records import Record


def passes(
    log: Log, *, program: Callable[..., Any] | None = None, start_at: str | None = None
) -> Report:
    """Submit every recorded proposal again: contracts, verdicts, plans and graphs must agree.

    The model is what the program builds, or a keyframe; every keyframe on the way brings the
    recorded weights back. Where they are those of the recording plans are compared as a whole,
    elsewhere without the values of tensors; graphs are compared everywhere.

    Args:
        log: of the run.
        program: builds the model, instead of the one that the log names.
        start_at: code of a keyframe; by default the run's start.

    Raises:
        InputError: the log names no program that can be called, or no such keyframe; or it brings
            proposals that are not installed here.
    """
    events = surviving(log)
    start = platform.start_of(events, log.path)
    run = programs.program_of(log, start, program)
    with platform.settings_of(start):
        differs = platform.differs(log, start)
        built: list[Any] = []

        def ready(session: Any) -> None:
            built.append(session)
            raise Stop

        first = None if start_at is None else programs.at(log, events, start_at)
        witness = Witness(events[:1], bitwise=not differs, begun=first is not None, ready=ready)
        programs.run(run, witness)
        notes = platform.note_of(differs)
        if witness.divergence is not None:
            return Report("pass", {}, witness.divergence, notes)
        if not built:
            raise InputError(f"the program of {log.path} ends before it builds a session")
        session = built[0]
        model = session.model
        session.close()
        if first is not None:
            event, events = first
            checkpoint.restore_model(model, keyframes.read(log, event)["model"])
            model.closed = ""
            notes += (f"from the keyframe {event.code}, tick {event.tick}",)
        replay = _Replay(log, model, events, bitwise=not differs)
        found = replay.run() or choices.contradiction(events)
    return Report("pass", dict(replay.compared), found, notes + replay.notes())


@dataclass
class _Submitted:
    """A proposal on its way: its events, and what has come of it now."""

    event: Event
    proposal: propose.Proposal
    graph: str
    parameters: str
    record: Record | None = None


class _Replay:
    """Follows the events of a recording with a model."""

    def __init__(self, log: Log, model: Model, events: Sequence[Event], *, bitwise: bool) -> None:
        self.compared: Counter[str] = Counter()
        self._log, self._model, self._events, self._bitwise = log, model, events, bitwise
        self._known = {event.number: event for event in events}
        self._agreed: Event | None = None
        self._submitted: dict[int, _Submitted] = {}
        self._plans = 0
        self._broken = 0
        # A rollback returns to the beginning of a boundary: kept only where there is one to come.
        self._returns = any(isinstance(event.payload, Rollback) for event in events)
        self._copies: list[tuple[int, str, Model]] = []  # tick, opening or change

    def notes(self) -> tuple[str, ...]:
        """What was not compared."""
        found = []
        rewrites = self.compared["rewrite"]
        if self._plans < rewrites:
            found.append(
                f"plans of {rewrites - self._plans} of {rewrites} rewrites compared without the "
                "values of tensors, which follow from training: a full replay has them"
            )
        if self._broken:
            found.append(f"{self._broken} proposals that broke something were not submitted again")
        return tuple(found)

    def run(self) -> Divergence | None:
        """The first divergence."""
        for event in self._events:
            self._model.ecology.tick = event.tick
            found = self._follow(event)
            if found:
                blame = compare.blame(event, found)
                return Divergence(event, blame, tuple(found[: compare.MOST]), self._agreed)
        return None

    def _follow(self, event: Event) -> list[Difference]:
        payload = event.payload
        if isinstance(payload, Proposed):
            self._submit(event, payload)
        elif isinstance(payload, ResolvedConfig):
            return self._resolved(event, payload)
        elif isinstance(payload, Verdict):
            return self._verdict(event, payload)
        elif isinstance(payload, Rewrite):
            return self._rewrite(event, payload)
        elif isinstance(payload, Keyframe):
            return self._keyframe(event, payload)
        elif isinstance(payload, Rollback):
            self._roll_back(event, payload)
        elif isinstance(payload, Metric):
            self._alpha(payload)
        elif isinstance(payload, Transition) and event.cause is None:
            self._rest(event, payload)
        return []

    def _submit(self, event: Event, payload: Proposed) -> None:
        try:
            proposal = propose.parse(payload.proposal)
        except ValidationError as error:
            raise InputError(
                f"the proposal {event.code} means nothing here: {error.errors()[0]['msg']}"
            ) from error
        self._model.payloads.clear()  # one that brought nothing finds nothing
        if payload.tensors:
            self._model.payloads[proposal.payload] = self._log.tensors(payload.tensors)
        if self._returns:
            self._keep(event.tick, proposal)
        parameters = tensors_digest(dict(self._model.all_tensors()))
        self._submitted[event.number] = _Submitted(
            event, proposal, graph_digest(self._model), parameters
        )

    def _keep(self, tick: int, proposal: propose.Proposal) -> None:
        """What rollbacks return to: before the first proposal of a tick, and the first change."""
        kept = {at for each, at, _ in self._copies if each == tick}
        for at in ("opening", *(("change",) if acts(proposal) else ())):
            if at not in kept:
                self._copies.append((tick, at, copy.deepcopy(self._model)))

    def _of(self, event: Event) -> _Submitted | None:
        for cause in choices.chain_of(self._known, event):
            if cause.number in self._submitted:
                return self._submitted[cause.number]
        return None

    def _resolved(self, event: Event, payload: ResolvedConfig) -> list[Difference]:
        mine = self._of(event)
        if mine is None:
            return []
        return self._agree(event, payload, resolved(mine.proposal, payload.state_policy))

    def _verdict(self, event: Event, payload: Verdict) -> list[Difference]:
        mine = self._of(event)
        if mine is None:
            return []
        if payload.result == "failure":
            self._broken += 1
            return []
        mine.record = PassManager(self._model).apply(mine.proposal)
        now = {"result": mine.record.kind, "code": mine.record.code}
        before = {"result": payload.result, "code": payload.code}
        found = self._agree(event, before, now)
        if found:
            found.append(Difference("reason", payload.reason, mine.record.reason))
        return found

    def _rewrite(self, event: Event, payload: Rewrite) -> list[Difference]:
        mine = self._of(event)
        if mine is None or mine.record is None:
            return []
        before = {
            "graph_before": payload.graph_before,
            "outline": payload.outline,
            "graph_after": payload.graph_after,
        }
        now = {
            "graph_before": mine.graph,
            "outline": mine.record.plan_outline or "",
            "graph_after": graph_digest(self._model),
        }
        if self._bitwise and mine.parameters == payload.parameters_before:
            self._plans += 1
            before |= {"plan": payload.plan, "parameters_after": payload.parameters_after}
            now |= {
                "plan": mine.record.plan_digest or "",
                "parameters_after": tensors_digest(dict(self._model.all_tensors())),
            }
        return self._agree(event, before, now)

    def _keyframe(self, event: Event, payload: Keyframe) -> list[Difference]:
        """From here on the weights are the recorded ones, if the file is still there."""
        if not (directory(self._log.path) / f"{payload.digest}.safetensors").exists():
            return []
        graph = graph_digest(self._model)
        checkpoint.restore_model(self._model, keyframes.read(self._log, event)["model"])
        self._model.closed = ""
        return self._agree(event, {"graph": graph_digest(self._model)}, {"graph": graph})

    def _roll_back(self, event: Event, payload: Rollback) -> None:
        figures = payload.figures
        to = int(figures.get("to_tick", event.tick))
        kept = str(figures.get("kept", "opening"))
        later = [c for tick, at, c in self._copies if tick > to or (tick == to and at == kept)]
        self._copies = [each for each in self._copies if each[0] < to]
        if later:
            checkpoint.become(self._model, later[0])
        self._model.ecology.tick = to
        charged = zip(figures.get("charged", ()), figures.get("against", ()), strict=True)
        charge(self._model.ecology, charged)

    def _alpha(self, payload: Metric) -> None:
        """The lifecycle moved an alpha along its curve, without a proposal."""
        kind, _, slot = payload.name.partition("/")
        alpha = (
            self._model.tensor(self._model.ecology.slot(slot).alpha) if kind == "alpha" else None
        )
        if alpha is not None:
            alpha.fill_(payload.value)

    def _rest(self, event: Event, payload: Transition) -> None:
        """A quarantine ended by the clock."""
        ecology = self._model.ecology
        life = ecology.lives.get(event.target)
        if isinstance(life, SlotLife) and payload.after == "dormant":
            now = {"stage": "dormant", "since": event.tick}
            ecology.set(event.target, life.model_copy(update=now))

    def _agree(
        self, event: Event, recorded: Any, now: Mapping[str, Any] | ResolvedConfig
    ) -> list[Difference]:
        found = compare.differences(event.kind, recorded, now, bitwise=self._bitwise)
        if not found:
            self.compared[event.kind] += 1
            self._agreed = event
        return found
