"""What a session writes into its flight record."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

from esper.live import keyframes
from esper.live.recording import Recording
from esper.recorder import calls
from esper.recorder.decisions import Proposed, ResolvedConfig, Rewrite, Verdict
from esper.recorder.event import Event
from esper.recorder.fingerprint import run_started
from esper.recorder.happenings import (
    Boundary,
    Metric,
    Probe,
    Recompile,
    Rollback,
    Tick,
    Transition,
)
from esper.recorder.sidecar import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from esper.ir.model import Model
    from esper.live.compiled import Compilation
    from esper.live.governor import Charge
    from esper.live.policy import StatePolicy
    from esper.propose import Proposal
    from esper.recorder.taker import EventTaker, Stateful
    from esper.records import Record

Digests = tuple[str, str, str]  # of graph, parameters and buffers, optimizer state
Cause = Event | int | None


class Diary:
    """Writes the events of a session; without a recorder it does nothing.

    Ticks are written at once and reach the disk with the next boundary at which something was
    proposed, at the latest after `sync_seconds` of the recorder's clock.
    """

    def __init__(self, recorder: EventTaker | None, recording: Recording) -> None:
        self.recorder = recorder
        self.recording = recording
        self._compilations = 0
        self.here: int | None = None  # the event of the latest tick
        self._due = 0  # when ticks are synced next

    def begin(self, model: Model, seeds: Mapping[str, int]) -> None:
        """The first event, unless the log goes on."""
        if self.recorder is None or self.recorder.events:
            return
        parameter = next(iter(model.parameters()), None)
        device = "cpu" if parameter is None else str(parameter.device)
        recording = self.recording
        start = run_started(
            seeds=seeds,
            device=device,
            config=calls.config(recording.config, self.recorder.program, recording.agents),
            model=graph_digest(model),
        )
        self.recorder.event("run-started", start)
        self.recorder.sync()

    def tick(self, tick: int, loss: float | None, batch: Any = None) -> None:
        """One training step; of its data only a digest is kept."""
        if self.recorder is not None:
            self.recorder.tick = tick
            digest = "" if batch is None else batch_digest(batch)
            event = self.recorder.event("tick", Tick(loss=loss, batch=digest))
            self.here = event.number
            if event.time > self._due:
                self._due = event.time + int(1e9 * self.recording.sync_seconds)
                self.recorder.sync()

    def proposed(
        self, model: Model, proposal: Proposal, rank: int, policy: StatePolicy, cause: Cause
    ) -> Cause:
        """A proposal as submitted, and what was resolved; returns the event to go on from."""
        if self.recorder is None:
            return None
        target = proposal.targets[0] if proposal.targets else ""
        agent = proposal.proposer
        brought = model.payloads.get(proposal.payload)
        payload = Proposed(
            proposal=proposal.model_dump(mode="json"),
            rank=rank,
            tensors="" if brought is None else self.recorder.tensors(brought),
        )
        event = self.recorder.event("proposal", payload, cause=cause, agent=agent, target=target)
        config = resolved(proposal, policy.text())
        return self.recorder.event(
            "resolved-config", config, cause=event, agent=agent, target=target
        )

    def judged(
        self, record: Record, cause: Cause, before: Digests | None, after: Digests | None
    ) -> Cause:
        """What became of it, and what changed; returns the event to go on from."""
        if self.recorder is None or record.proposal is None:
            return None
        proposal = record.proposal
        names = {
            "agent": proposal.proposer,
            "target": proposal.targets[0] if proposal.targets else "",
        }
        verdict = Verdict(
            result=record.kind,
            code=record.code,
            reason=record.reason,
            remedy=record.remedy,
            node=record.node,
            figures={k: v for k, v in record.figures.items() if k != "event"},
            plan=record.plan_digest or "",
        )
        event = self.recorder.event("verdict", verdict, cause=cause, **names)
        if record.kind == "passed" and before is not None and after is not None:
            rewrite = Rewrite(
                record.plan_digest or "",
                before[0], after[0], before[1], after[1], before[2], after[2],
                record.plan_summary, record.plan_outline or "",
            )  # fmt: skip
            event = self.recorder.event("rewrite", rewrite, cause=event, **names)
        return event

    def transition(
        self,
        target: str,
        before: str,
        after: str,
        gate: str,
        criteria: Mapping[str, Any],
        cause: Cause = None,
    ) -> None:
        """A slot, seed or phage went from one stage to another."""
        if self.recorder is not None:
            payload = Transition(before, after, gate, dict(criteria))
            self.recorder.event("transition", payload, cause=cause, target=target)

    def metric(self, name: str, value: float) -> None:
        """One number at this tick."""
        if self.recorder is not None:
            self.recorder.event("metric", Metric(name, value))

    def boundary(
        self, index: int, digests: Digests, loss: float | None, cursors: Mapping[str, int]
    ) -> None:
        """The state after a boundary, which is on disk then."""
        if self.recorder is not None:
            payload = Boundary(
                index=index,
                graph=digests[0],
                parameters=digests[1],
                optimizer=digests[2],
                generators=cursors,
                loss=loss,
            )
            self.recorder.event("boundary", payload)
            self.recorder.sync()

    def keyframe(self, tick: int, session: Stateful, cursors: Mapping[str, int]) -> None:
        """The whole state that the step of this tick starts from."""
        if self.recorder is not None:
            self.recorder.tick = tick
            keyframes.write(self.recorder, self.recording, tick, session.state_dict(), cursors)

    def undone(self, error: BaseException, proposals: int) -> None:
        """An exception ended a boundary: what was applied at it is undone."""
        if self.recorder is not None:
            reason = f"the boundary ended with {type(error).__name__}"
            self.recorder.event("rollback", Rollback(reason, figures={"proposals": proposals}))
            self.recorder.sync()

    def probed(self, payload: Probe, agent: str, target: str, cause: Cause) -> Cause:
        """A probe began, or ended with a finding."""
        if self.recorder is None:
            return None
        return self.recorder.event("probe", payload, cause=cause, agent=agent, target=target)

    def rolled_back(
        self,
        reason: str,
        to: int | None,
        charged: Sequence[tuple[Charge, int | None]],
        figures: Mapping[str, Any],
    ) -> None:
        """The governor acted.

        Args:
            reason: why.
            to: number of the tick's event whose state was restored.
            charged: antibodies, each with the number of the proposal's event.
            figures: that a replay needs.
        """
        if self.recorder is not None:
            events = [event for _, event in charged if event is not None]
            told = {
                **figures,
                "charged": [page for (page, _), _ in charged],
                "against": [against for (_, against), _ in charged],
                "charged_events": events,
            }
            payload = Rollback(reason, to, events[-1] if events else None, told)
            self.recorder.event("rollback", payload)
            self.recorder.sync()

    def compiled(self, compilation: Compilation) -> None:
        """A compilation ended."""
        self._compilations += 1
        if self.recorder is not None:
            payload = Recompile(
                "model", self._compilations, compilation.seconds, compilation.trigger
            )
            self.recorder.event("recompile", payload)


def resolved(proposal: Proposal, state_policy: str) -> ResolvedConfig:
    """What is going to be applied: the proposal's fields after defaults."""
    fields = proposal.model_dump(mode="json", exclude={"type", "proposer", "evidence"})
    blend: dict[str, Any] = fields.pop("blend", None) or {}
    return ResolvedConfig(
        blueprint=str(fields.pop("blueprint", "")),
        blend=str(blend.get("algorithm", "")),
        curve=str(blend.get("curve", "")),
        tempo=str(blend.get("ticks", "")),
        init=str(fields.pop("init", "")),
        state_policy=state_policy,
        values=fields,
    )


def graph_digest(model: Model) -> str:
    """32 hexadecimal digits for the printed graph."""
    return hashlib.blake2b(str(model).encode(), digest_size=16).hexdigest()


def batch_digest(batch: Any) -> str:
    """32 hexadecimal digits for the tensors of a batch, in whatever containers."""
    leaves = torch.utils._pytree.tree_leaves(batch)
    tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    return tensors_digest(tensors)


def digests(model: Model, optimizers: Sequence[torch.optim.Optimizer]) -> Digests:
    """Of the graph, of parameters and buffers, and of optimizer state by parameter name."""
    names = {id(p): n for n, p in model.named_parameters()}
    states: dict[str, torch.Tensor] = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    states[f"{index}/{names.get(id(parameter), '?')}/{key}"] = value
    return graph_digest(model), tensors_digest(dict(model.all_tensors())), tensors_digest(states)
