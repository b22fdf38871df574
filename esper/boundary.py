"""One boundary of a session: proposals are submitted, applied, and final when it closes."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from esper.ecology.betting import Rule
from esper.ecology.criteria import GATES, gate
from esper.ecology.events import shot
from esper.ecology.ledger import acts, only_writes
from esper.errors import BoundaryError
from esper.ir.sleeping import asleep
from esper.live.clinic import Clinic, Part, parts
from esper.live.diary import digests
from esper.live.observation import Observation
from esper.live.policy import StatePolicy
from esper.plan import Plan, Refusal
from esper.propose import Proposal, Sedate, Wake
from esper.recorder.event import Event
from esper.records import Record
from esper.state import Create, Drop

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from esper.live.probe import Loss, ProbeResult, Swept
    from esper.manager import Transaction
    from esper.session import Session

_KEEP = StatePolicy()


class Boundary:
    """Made by `Session.boundary`; use it in a `with` statement.

    An exception inside undoes all that was applied at this boundary.

    Attributes:
        records: what became of each proposal, in order.
        rolled_back: why the governor returned to the last keyframe as this boundary opened; "".
    """

    def __init__(
        self, session: Session, loss: float | torch.Tensor | None, batch: Any = None
    ) -> None:
        self.session = session
        self.loss = loss
        self._batch = batch
        self.records: list[Record] = []
        self.rolled_back = ""
        self._observation: Observation | None = None
        self._kept = False
        # Of the session as the boundary opened, to be put back should it fail.
        self._since: list[tuple[Proposal, int | None]] = []
        self._events: list[list[Any]] = []
        self._transaction: Transaction | None = None
        self._scope: AbstractContextManager[Transaction] | None = None
        self._clinic = Clinic(session.model, session.diary)
        self._closed = False

    def __enter__(self) -> Self:
        session = self.session
        if session._open is not None:
            raise BoundaryError("this session is at a boundary already")
        if self._closed:
            raise BoundaryError("this boundary is over; ask the session for another")
        self._refuse_half_a_step()
        session._open = self
        if session.meter is not None:
            session.meter.listen()
        try:
            self._govern()
            if session.lifecycle is not None and not self.rolled_back:
                session.lifecycle.open(self)
        except BaseException:
            self._leave(failed=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self.session
        self._leave(failed=kind is not None)
        if kind is None:
            session.model.ecology.tick += 1
        if any(record.kind == "passed" and _edits(record) for record in self.records):
            session.model.renew_code()
            session.signals.renew()
        if self.records:
            session.check()
        if session.recorder is not None:
            self._note(error)

    def _leave(self, *, failed: bool) -> None:
        session = self.session
        try:
            if self._scope is not None:
                if failed:
                    assert self._transaction is not None
                    self._transaction.roll_back()
                    session.since[:] = [] if self._kept else self._since
                    session.events.assign(self._events)
                else:
                    self._wake()
                self._scope.__exit__(None, None, None)
            if failed and session.lifecycle is not None:
                session.lifecycle.undo()
        finally:
            session._open = None
            self._closed = True
            session.model.payloads.clear()  # solved for a proposal of this boundary

    # -- proposals -------------------------------------------------------------------------------

    @property
    def observation(self) -> Observation:
        """What agents see here; nothing is computed before it is read."""
        if self._observation is None:
            self._observation = Observation(self)
        return self._observation

    def plan(self, proposal: Proposal) -> Plan | Refusal:
        """Dry run."""
        return self.session.manager.plan(proposal)

    def submit(
        self,
        *proposals: Proposal,
        policy: StatePolicy | None = None,
        cause: Event | int | None = None,
    ) -> list[Record]:
        """Apply proposals in order; each record says what became of one. Refusals raise nothing.

        Args:
            proposals: what is wished.
            policy: what optimizer state does; by default the session's policy for the type.
            cause: the event of the flight record that led to the proposals; by default what an
                agent noted for each (`Observation.because`).
        """
        session = self.session
        self._refuse_closed()
        made: list[Record] = []
        for proposal in proposals:
            chosen = policy or session.policies.get(proposal.type, _KEEP)
            if not self._kept and acts(proposal) and not asleep(session.model):
                self._keep()
            if self._scope is None:
                self._since, self._events = list(session.since), session.events.data()
                self._scope = session.manager.transaction()
                self._transaction = self._scope.__enter__()
            reason = cause or self._cause(proposal)
            record, number = self._recorded(proposal, chosen, reason)
            made.append(record)
            self.records.append(record)
            if record.kind == "passed" and session._keyframe is not None:
                session.since.append((proposal, number))
            target = proposal.targets[0] if proposal.targets else ""
            session.events.push(
                shot(session.tick, proposal.type, target, record.kind, record.figures)
            )
            if record.kind == "passed" and not only_writes(proposal):
                self._clinic.discharge()
        return made

    def _cause(self, proposal: Proposal) -> Event | None:
        return None if self._observation is None else self._observation.cause(proposal)

    def probe(
        self,
        target: str,
        batches: Iterable[Any],
        *,
        loss: Loss,
        units: Sequence[int] = (),
        rule: Rule | None = None,
        note: bool = True,
        proposer: str = "user",
        cause: Event | int | None = None,
    ) -> ProbeResult:
        """What the model loses while a region, or some units of an axis, sleep.

        The live model is not touched: see `esper.live.probe`. The finding is written into the
        flight record and, as a proposal, into the immune ledger.

        Args:
            target: ID of a region or an axis.
            batches: held-out data; no more are drawn than the rule needs.
            loss: (model, batch) -> loss, which must call the model that it is given.
            units: birth numbers, for an axis: heads, channels, neurons, blocks of them.
            rule: when to stop, and what is harm.
            note: whether the finding joins the ledger.
            proposer: who asks.
            cause: the event of the flight record that led to the probe.

        Raises:
            UsageError: the loss did not call its model.
            BoundaryError: the boundary is not open.
        """
        self._refuse_closed()
        proposal = Sedate(target=target, units=tuple(units), proposer=proposer)
        result, event = self._clinic.probe(proposal, batches, loss, rule or Rule(), cause)
        if not note or result.outcome == "refused":
            return result
        (record,) = self.submit(result.note(proposer), cause=event)
        return replace(result, record=record)

    def sweep(
        self,
        targets: Iterable[Part],
        batches: Iterable[Any],
        *,
        loss: Loss,
        proposer: str = "user",
        cause: Event | int | None = None,
    ) -> list[Swept]:
        """Regions, or (axis, units), by how little they are missed on a few batches: a diagnostic.

        It decides nothing and leaves no evidence. Arguments are as for `probe`.
        """
        self._refuse_closed()
        return self._clinic.sweep(parts(targets, proposer), batches, loss, cause)

    def _refuse_closed(self) -> None:
        if self._closed or self.session._open is not self:
            raise BoundaryError("this boundary is not open: submit inside its `with` statement")

    def _keep(self) -> None:
        """Before the first change: the state to which the governor would return."""
        self._kept = True
        if self.session.governor is not None:
            self.session.keep("change")

    def _wake(self) -> None:
        """No step is made on a sedated model."""
        for target in asleep(self.session.model):
            self.submit(Wake(target=target, proposer="boundary"))

    def _recorded(
        self, proposal: Proposal, policy: StatePolicy, cause: Event | int | None
    ) -> tuple[Record, int | None]:
        """The record, and the number of the proposal's event."""
        session, diary = self.session, self.session.diary
        if diary.recorder is None:
            return self._apply(proposal, policy), None
        optimizers = [follower.optimizer for follower in session.optimizers]
        before, stages = digests(session.model, optimizers), self._stages()
        event = diary.proposed(session.model, proposal, len(self.records), policy, cause)
        record = self._apply(proposal, policy)
        after = digests(session.model, optimizers) if record.kind == "passed" else None
        judged = diary.judged(record, event, before, after)
        gates = GATES if session.lifecycle is None else session.lifecycle.gates
        for slot, stage in self._stages().items():
            old = stages.get(slot, "dormant")
            if stage != old:
                passed = gate(gates, old, stage)
                name = "" if passed is None else passed.name
                diary.transition(slot, old, stage, name, proposal.evidence, judged)
        return record, event.cause if isinstance(event, Event) else event

    def _stages(self) -> dict[str, str]:
        return {name: life.stage for name, life in self.session.model.ecology.slots().items()}

    def _apply(self, proposal: Proposal, policy: StatePolicy) -> Record:
        session = self.session
        for follower in session.optimizers:
            follower.policy = policy
            follower.touched.clear()
        closed, session.model.closed = session.model.closed, ""
        try:
            record = session.manager.apply(proposal)
        finally:
            session.model.closed = closed
        if record.kind != "passed":
            return record
        for follower, warmup in zip(session.optimizers, session.warmups, strict=True):
            changed = [m for m in follower.touched if not isinstance(m.op, Drop)]
            warmup.start(
                (m.after for m in changed if m.after is not None and _trains(m.after, m.op)),
                policy.warmup,
            )
            warmup.forget(m.before for m in follower.touched if m.before is not None is m.after)
        figures: dict[str, Any] = {**record.figures, "state_policy": policy.text()}
        return record.model_copy(update={"figures": figures})

    def _note(self, error: BaseException | None) -> None:
        """What the flight record keeps of the end of a boundary."""
        session, diary = self.session, self.session.diary
        if error is not None:
            if self.records:
                diary.undone(error, len(self.records))
            return
        if self.records or diary.recording.digest_due(session.tick):
            state = digests(session.model, [f.optimizer for f in session.optimizers])
            diary.boundary(session.tick, state, self._loss(), session.generators.cursors)
        if diary.recording.keyframe_due(session.tick):
            diary.keyframe(session.tick, session, session.generators.cursors)

    # -- opening ---------------------------------------------------------------------------------

    def _loss(self) -> float | None:
        loss = self.loss
        if isinstance(loss, torch.Tensor):
            return float(loss.detach())
        return None if loss is None else float(loss)

    def _refuse_half_a_step(self) -> None:
        scaler = self.session.scaler
        if scaler is None:
            return
        for follower in self.session.optimizers:
            stage = scaler._per_optimizer_states[id(follower.optimizer)]["stage"]
            if stage.name != "READY":
                raise BoundaryError(
                    "gradients are unscaled but scaler.update() has not run: "
                    "open the boundary after it"
                )

    def _govern(self) -> None:
        session, governor = self.session, self.session.governor
        loss = self._loss()
        session.diary.tick(session.tick, loss, self._batch)
        if governor is None:
            if loss is not None:
                session.losses.add(loss)
            return
        if loss is not None:
            self.rolled_back = governor.judge(loss)
            if self.rolled_back:
                session.roll_back(self.rolled_back)
                return
            session.losses.add(loss)
        every = session.keyframe_every
        if session._keyframe is None or (every and session.tick % every == 0):
            session.keep()


def _edits(record: Record) -> bool:
    return record.proposal is None or not only_writes(record.proposal)


def _trains(tensor: torch.Tensor, op: object) -> bool:
    return tensor.requires_grad and (not isinstance(op, Create) or op.trainable)
