"""Records: what became of each proposal, and why."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from esper.propose import Proposal

Kind = Literal["passed", "missed", "failure", "analysis"]


class Record(BaseModel):
    """One line of the flight record.

    Attributes:
        kind: passed (committed), missed (refused, with reason and remedy), failure (something
            broke and was rolled back), analysis (a remark without a proposal or decision).
        code: stable short code of the rule or outcome: `applied`, `frozen-axis`, `gate-reject`.
        reason: one sentence for a person.
        node: graph node (or ID) at which it was decided, if any.
        remedy: what would help, if anything.
        figures: measured or computed numbers (units, bytes, speedup, quality, ...).
        plan: digest of the resolved plan, and its one-line summary; the outline is the digest
            without the values of tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    code: str
    reason: str
    proposal: Proposal | None = None
    pass_name: str = ""
    node: str | None = None
    remedy: str = ""
    figures: dict[str, Any] = Field(default_factory=dict)
    plan_digest: str | None = None
    plan_outline: str | None = None
    plan_summary: str = ""
    number: int = -1
    seconds: float = 0.0

    def line(self) -> str:
        """One-line text: `passed prune-units axis:... : 12 units cut [applied]`."""
        what = self.proposal.type if self.proposal is not None else self.pass_name
        where = " ".join(self.proposal.targets) if self.proposal is not None else self.node or ""
        text = f"{self.kind} {what} {where}".rstrip() + f": {self.reason} [{self.code}]"
        return f"{text}; {self.remedy}" if self.remedy else text


def schema() -> dict[str, Any]:
    """JSON schema of a record."""
    return Record.model_json_schema()
