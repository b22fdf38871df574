"""`--opt-bisect-limit`: find the proposal that breaks something."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from esper.errors import UsageError
from esper.instruments._output import Write, label, to_stderr
from esper.instruments.base import Instrument
from esper.plan import Refusal

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.propose import Proposal


class Bisect(Instrument):
    """Number every proposal from 1, and refuse those above a limit.

    Numbers are stable up to the limit, as those of LLVM's OptBisect are: what runs with limit N
    is what the first N lines of a run without limit say, if the pipeline and seed are the same.

    Args:
        limit: the last proposal that may run; -1 lets all run and only numbers them.
        write: receives one line per proposal.
    """

    name: ClassVar[str] = "bisect"

    def __init__(self, limit: int, *, write: Write = to_stderr) -> None:
        if limit < -1:
            raise UsageError(f"the bisect limit must be -1 or more, not {limit}")
        self.limit = limit
        self.count = 0
        self._write = write

    def before_proposal(
        self, model: Model, pass_: Pass | None, proposal: Proposal
    ) -> Refusal | None:
        self.count += 1
        allowed = self.limit == -1 or self.count <= self.limit
        verb = "running" if allowed else "NOT running"
        targets = " ".join(proposal.targets)
        what = f"{proposal.type} {targets}".rstrip()
        self._write(f"BISECT: {verb} proposal ({self.count}) {what} by {label(pass_)}")
        if allowed:
            return None
        return Refusal(
            "bisect-limit",
            f"proposal {self.count} is above the bisect limit {self.limit}",
            remedy="raise or drop --opt-bisect-limit",
        )
