"""Where probes and sweeps are held at a boundary, and written into the flight record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from esper.contracts import check
from esper.ecology.betting import Rule
from esper.live import probe
from esper.live.probe import Loss, ProbeResult, Swept, Ward
from esper.propose import Sedate
from esper.recorder.happenings import Probe

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.live.diary import Cause, Diary

Part = str | tuple[str, Sequence[int]]  # a region; or an axis and units of it


class Clinic:
    """Probes one model. Copies are kept from probe to probe until `discharge`.

    Args:
        model: the live model; never changed here.
        diary: where probes are written down.
    """

    def __init__(self, model: Model, diary: Diary) -> None:
        self._model = model
        self._diary = diary
        self._ward: Ward | None = None

    def discharge(self) -> None:
        """The model has changed: the copies no longer stand for it."""
        self._ward = None

    def probe(
        self, proposal: Sedate, batches: Iterable[Any], loss: Loss, rule: Rule, cause: Cause
    ) -> tuple[ProbeResult, Cause]:
        """The finding, and the event of its end, from which the record goes on."""
        figures = {"units": list(proposal.units), **asdict(rule)}
        started = self._note(proposal, Probe("sedation", "started", figures=figures), cause)
        refusal = check(self._model, proposal)
        if refusal is not None:
            result = ProbeResult(
                proposal.target, proposal.units, "refused", refusal.reason, refusal.code
            )
        else:
            result = probe.run(self._open(), proposal, batches, loss, rule)
        ended = Probe(
            "sedation",
            "ended",
            result.outcome,
            {
                "reason": result.reason,
                "code": result.code,
                "change": result.change,
                "error": result.error,
                "awake": result.awake,
                "batches": result.batches,
                **result.figures,
            },
        )
        return result, self._note(proposal, ended, started)

    def sweep(
        self, proposals: Sequence[Sedate], batches: Iterable[Any], loss: Loss, cause: Cause
    ) -> list[Swept]:
        """Targets ranked by how little they are missed."""
        admitted: list[Sedate] = []
        refused: list[Swept] = []
        for proposal in proposals:
            refusal = check(self._model, proposal)
            if refusal is None:
                admitted.append(proposal)
            else:
                refused.append(probe.not_swept(proposal, refusal.reason))
        lines = [*probe.sweep(self._open(), admitted, batches, loss), *refused]
        for line in lines:
            figures = {"change": line.change, "error": line.error, "batches": line.batches}
            if line.refused:
                figures = {"reason": line.refused}  # type: ignore[dict-item]
            decision = "refused" if line.refused else ""
            proposal = Sedate(target=line.target, units=line.units)
            self._note(proposal, Probe("ablation", "ended", decision, figures), cause)
        return lines

    def _open(self) -> Ward:
        if self._ward is None:
            self._ward = Ward(self._model)
        return self._ward

    def _note(self, proposal: Sedate, payload: Probe, cause: Cause) -> Cause:
        return self._diary.probed(payload, proposal.proposer, proposal.target, cause)


def parts(targets: Iterable[Part], proposer: str) -> list[Sedate]:
    """What a sweep sedates in turn."""
    named = [(t, ()) if isinstance(t, str) else (t[0], tuple(t[1])) for t in targets]
    return [Sedate(target=name, units=units, proposer=proposer) for name, units in named]
