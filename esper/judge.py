"""Judgement of a candidate: quality first, because it is cheap, then time at the gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from esper.errors import GateError
from esper.gate.quality import QualityBudget

if TYPE_CHECKING:
    from esper.gate.gate import Gate, Say
    from esper.gate.launcher import Launcher
    from esper.gate.verdict import Verdict
    from esper.ir.model import Model


@dataclass(frozen=True)
class Judgement:
    """Whether a candidate is kept, and why."""

    accepted: bool
    code: str
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None


class Judge:
    """Holds candidates against the quality budget and the gate.

    Args:
        gate: None applies without measuring time, and says so.
        inputs: example inputs for the gate (with weights and several shapes if given).
        quality: None judges no quality, and says so.
    """

    def __init__(
        self,
        gate: Gate | None,
        inputs: Any,
        quality: QualityBudget | None,
        launcher: Launcher | None,
        say: Say,
    ) -> None:
        self.gate = gate
        self.inputs = inputs
        self.quality = quality
        self._launcher = launcher
        self._say = say

    def judge_quality(self, candidate: Model) -> Judgement:
        """Quality alone."""
        if self.quality is None:
            return Judgement(True, "not-judged", "quality was not judged: no metric and no data")
        found = self.quality.judge(candidate)
        code = "within-budget" if found.admissible else "quality"
        return Judgement(found.admissible, code, found.reason, found.figures())

    def judge(
        self, baseline: Model, candidate: Model, backends: tuple[str, str], *, lossy: bool
    ) -> Judgement:
        """Quality (of changes that can lose any) and then time against `baseline`.

        A measurement that fails is a refusal with its reason, not an error.
        """
        quality = self.judge_quality(candidate) if lossy else None
        figures = dict(quality.figures) if quality is not None else {}
        if quality is not None and not quality.accepted:
            return quality
        if self.gate is None:
            return Judgement(True, "not-measured", "applied without measuring time", figures)
        try:
            verdict = self.gate.compare(
                baseline,
                candidate,
                self.inputs,
                backends=backends,
                launcher=self._launcher,
                say=self._say,
            )
        except GateError as error:
            # What cannot be measured has not been shown to pay; the rest of the run goes on.
            return Judgement(False, "gate-failed", f"measuring failed: {error}", figures)
        figures |= {
            "speedup": verdict.speedup,
            "lower": verdict.lower,
            "upper": verdict.upper,
            "milliseconds_before": verdict.baseline.milliseconds,
            "milliseconds_after": verdict.candidate.milliseconds,
            "backend": verdict.candidate.backend,
        }
        code = {"accept": "accepted", "reject": "gate-reject", "ambiguous": "gate-ambiguous"}
        found = code[verdict.outcome]
        if verdict.seconds_needed is not None:
            found = "gate-unconfirmed"
            figures["seconds_needed"] = verdict.seconds_needed
        return Judgement(verdict.accepted, found, verdict.summary(), figures, verdict)
