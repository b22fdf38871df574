"""One boundary of a session: proposals are submitted, applied, and final when it closes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from esper.errors import BoundaryError
from esper.live.diary import digests
from esper.live.policy import StatePolicy
from esper.plan import Plan, Refusal
from esper.propose import Proposal
from esper.records import Record
from esper.state import Create, Drop

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from esper.manager import Transaction
    from esper.recorder.event import Event
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
        self._transaction: Transaction | None = None
        self._scope: AbstractContextManager[Transaction] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        session = self.session
        if session._open:
            raise BoundaryError("this session is at a boundary already")
        if self._closed:
            raise BoundaryError("this boundary is over; ask the session for another")
        self._refuse_half_a_step()
        session._open = True
        if session.meter is not None:
            session.meter.listen()
        try:
            self._govern()
        except BaseException:
            session._open = False
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session = self.session
        try:
            if self._scope is not None:
                if kind is not None:
                    assert self._transaction is not None
                    self._transaction.roll_back()
                self._scope.__exit__(None, None, None)
        finally:
            session._open = False
            self._closed = True
        if kind is None:
            session.model.ecology.tick += 1
        if any(record.kind == "passed" for record in self.records):
            session.model.renew_code()
        if self.records:
            session.check()
        if session.recorder is not None:
            self._note(error)

    # -- proposals -------------------------------------------------------------------------------

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
            cause: the event of the flight record that led to the proposals.
        """
        session = self.session
        if self._closed or not session._open:
            raise BoundaryError("this boundary is not open: submit inside its `with` statement")
        made: list[Record] = []
        for proposal in proposals:
            chosen = policy or session.policies.get(proposal.type, _KEEP)
            if self._scope is None:
                self._begin()
            made.append(self._recorded(proposal, chosen, cause))
            self.records.append(made[-1])
        return made

    def _begin(self) -> None:
        """The first proposal: whatever follows can be undone together, and the state is kept."""
        session = self.session
        if session.governor is not None:
            session.keep()
        self._scope = session.manager.transaction()
        self._transaction = self._scope.__enter__()

    def _recorded(
        self, proposal: Proposal, policy: StatePolicy, cause: Event | int | None
    ) -> Record:
        session, diary = self.session, self.session.diary
        if diary.recorder is None:
            return self._apply(proposal, policy)
        optimizers = [follower.optimizer for follower in session.optimizers]
        before = digests(session.model, optimizers)
        event = diary.proposed(session.model, proposal, len(self.records), policy, cause)
        record = self._apply(proposal, policy)
        after = digests(session.model, optimizers) if record.kind == "passed" else None
        diary.judged(record, event, before, after)
        return record

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
        session.since.append(proposal)
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
        session.diary.tick(session.tick, self._loss(), self._batch)
        if governor is None:
            return
        if self.loss is not None:
            loss = self._loss()
            assert loss is not None
            self.rolled_back = governor.judge(loss)
            if self.rolled_back:
                session.roll_back(self.rolled_back)
                return
        every = session.keyframe_every
        if session._keyframe is None or (every and session.tick % every == 0):
            session.keep()


def _trains(tensor: torch.Tensor, op: object) -> bool:
    return tensor.requires_grad and (not isinstance(op, Create) or op.trainable)
