"""The one door: only the PassManager changes a model.

contract > plan > apply > verify > record. A refusal, a failed verification or any error leaves
the model bit for bit as it was, and the record says what happened and why.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch import fx

from esper.apply import Applier, Follower, Journal
from esper.contracts import check
from esper.ecology.ledger import rested
from esper.errors import BoundaryError, VerificationError
from esper.instruments.base import Instrument, Stack
from esper.ir import shapes
from esper.ir.scope import Change
from esper.ir.verifier import Stage, verify
from esper.passbase import Pass, rewrites
from esper.plan import Plan, Refusal
from esper.propose import Proposal
from esper.records import Record

if TYPE_CHECKING:
    from esper.ir.model import Model

Verify = Literal["incremental", "full", "none"]


class Transaction:
    """Everything applied since it began can be rolled back together."""

    def __init__(self, manager: PassManager) -> None:
        self._manager = manager
        self._mark = len(manager.journal)
        self._history = len(manager.model.history)
        self._backend = manager.backend

    def roll_back(self) -> None:
        """Undo every commit since the transaction began, bit for bit."""
        manager = self._manager
        manager.journal.roll_back(self._mark)
        del manager.model.history[self._history :]
        manager.backend = self._backend


class PassManager:
    """Applies proposals to one model, in place.

    Args:
        model: changed in place.
        verify: `incremental` checks what a plan touches and all that follows from it, `full`
            the whole graph before and after, `none` nothing.
        instruments: observers; one of them may veto a proposal.
        followers: what shadows the model's tensors and changes with them, or not at all.
    """

    def __init__(
        self,
        model: Model,
        *,
        verify: Verify = "incremental",
        instruments: Stack | Sequence[Instrument] = (),
        followers: Sequence[Follower] = (),
    ) -> None:
        self.model = model
        self.followers = tuple(followers)
        self.verify: Verify = verify
        self.instruments = instruments if isinstance(instruments, Stack) else Stack(instruments)
        self.journal = Journal()
        self.backend = "eager"
        self.touched: frozenset[str] = frozenset()  # tensors of the last plan that was applied
        self._open = 0
        self._deferred = 0

    def plan(self, proposal: Proposal) -> Plan | Refusal:
        """Contract and plan: everything but the change."""
        refusal = check(self.model, proposal)
        if refusal is not None:
            return refusal
        rewrite = rewrites().get(proposal.type)
        if rewrite is None:
            return Refusal("no-rewrite", f"no rewrite is installed for {proposal.type}")
        plan = rewrite.plan(self.model, proposal)
        return plan if isinstance(plan, Refusal) else rested(self.model.ecology, plan)

    def apply(self, proposal: Proposal, pass_: Pass | None = None) -> Record:
        """Commit a proposal or record why not. Never raises for a refusal or a failed check.

        Raises:
            BoundaryError: the model belongs to a session that is not at a boundary.
        """
        if self.model.closed:
            raise BoundaryError(self.model.closed)
        started = time.perf_counter()
        name = pass_.name if pass_ is not None else ""
        veto = self.instruments.before_proposal(self.model, pass_, proposal)
        mark = len(self.journal)
        plan: Plan | Refusal | None = veto
        try:
            if plan is None:
                with self.instruments.phase("plan"):
                    plan = self.plan(proposal)
            if isinstance(plan, Refusal) or plan.empty:
                record = _refused(plan, proposal)
            else:
                self._commit(plan)
                self.touched = frozenset(plan.state.ops)
                record = _passed(plan)
        except Exception as error:  # noqa: BLE001 - whatever broke is rolled back and recorded
            self.journal.roll_back(mark)
            record = _failed(error, proposal, plan if isinstance(plan, Plan) else None)
            self.instruments.after_failure(self.model, pass_, error)
        except BaseException:
            self.journal.roll_back(mark)  # interrupted: nothing stays half applied
            raise
        self._settle()
        seconds = time.perf_counter() - started
        record = record.model_copy(update={"pass_name": name, "seconds": seconds})
        if record.kind == "passed":
            self.model.history.append(proposal.model_dump(mode="json"))
        self.instruments.after_proposal(self.model, pass_, record)
        return record

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Keep the journal open, so that what is applied inside can be rolled back together.

        Code generation also waits until the end (or the next forward call).
        """
        self._open += 1
        try:
            yield Transaction(self)
        finally:
            self._open -= 1
            self._settle()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Generate code once for many proposals. Unlike a transaction it keeps no old tensors:
        each proposal is final when its `apply` returns.
        """
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
            self._settle()

    def _settle(self) -> None:
        if self._open:
            return
        self.journal = Journal()
        if not self._deferred:
            self.model.refresh()

    def _commit(self, plan: Plan) -> None:
        if self.verify == "full":
            with self.instruments.phase("verify"):
                verify(self.model, stage=self._stage)
        with self.instruments.phase("apply"):
            applier = Applier(self.model, self.journal)
            dirty = applier.apply(plan)
            for follower in self.followers:
                follower.follow(plan, applier.moved, self.journal)
            evaluated = self._propagate(dirty)
        if plan.backend is not None:
            self.backend = plan.backend
        if self.verify == "none":
            return
        change = None if self.verify == "full" else _change(plan, dirty, evaluated)
        with self.instruments.phase("verify"):
            verify(self.model, stage=self._stage, change=change)

    @property
    def _stage(self) -> Stage:
        """What the model is verified as."""
        return "lowered" if self.model.kernel_ops else "traced"

    def _propagate(self, dirty: set[fx.Node]) -> set[str]:
        """Recompute shapes from the dirty nodes on; the values before go to the journal.

        Returns the names of the nodes that were recomputed.
        """
        before: dict[str, Any] = {}

        def undo() -> None:
            nodes = self.model.nodes
            for name, value in before.items():
                if name in nodes:
                    nodes[name].meta["val"] = value

        self.journal.add(undo)
        shapes.propagate(self.model, dirty, before)
        return set(before)


def _change(plan: Plan, dirty: set[fx.Node], evaluated: set[str]) -> Change:
    resized = frozenset([c.axis for c in plan.cuts] + [g.axis for g in plan.growths])
    return Change(
        frozenset({node.name for node in dirty} | evaluated),
        resized if plan.only_resizes else None,
        frozenset(plan.state.ops),
        frozenset(evaluated),
    )


def _refused(why: Plan | Refusal, proposal: Proposal) -> Record:
    if isinstance(why, Plan):
        why = Refusal("no-change", "nothing would change")
    return Record(
        kind="missed",
        code=why.code,
        reason=why.reason,
        node=why.node,
        remedy=why.remedy,
        proposal=proposal,
    )


def _passed(plan: Plan) -> Record:
    return Record(
        kind="passed",
        code="applied",
        reason=plan.summary,
        proposal=plan.proposal,
        figures={**plan.figures, "tolerance": plan.tolerance},
        plan_digest=plan.digest,
        plan_outline=plan.outline,
        plan_summary=plan.summary,
    )


def _failed(error: Exception, proposal: Proposal, plan: Plan | None) -> Record:
    verification = isinstance(error, VerificationError)
    return Record(
        kind="failure",
        code="verification" if verification else "error",
        reason=f"{type(error).__name__}: {error}",
        remedy="the model is as it was; please report this with a reproducer",
        proposal=proposal,
        figures={"problems": list(error.problems)} if isinstance(error, VerificationError) else {},
        plan_digest=plan.digest if plan is not None else None,
        plan_summary=plan.summary if plan is not None else "",
    )
