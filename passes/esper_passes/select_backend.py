"""Run the model on the backend that measures fastest here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.errors import BackendError
from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import SelectBackend as Proposal

if TYPE_CHECKING:
    from esper.ir.model import Model

_PROCESSES = 2  # enough to rank backends; the gate judges the winner with its full rule


class SelectBackendRewrite(Rewrite):
    """The graph stays as it is; the run from now on uses another backend."""

    type = "select-backend"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        summary = f"run on {proposal.backend}"
        return Plan(proposal, summary, tolerance="reassociates", backend=proposal.backend)


@dataclass(frozen=True)
class SelectBackend(Pass):
    """Measure every installed backend and propose the fastest."""

    name: ClassVar[str] = "select-backend"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "speed"

    def propose(self, model: Model, context: Context) -> Proposals:
        from esper.gate.gate import usable_backends

        gate = context.gate
        if gate is None or context.inputs is None:
            yield Remark(
                "missed",
                "not-measured",
                "choosing a backend needs measuring",
                remedy="run with the gate and with example inputs",
            )
            return
        ratios: dict[str, float] = {}
        usable = usable_backends(gate.context)
        for number, (backend, missing) in enumerate(usable.items()):
            if backend == context.backend:
                continue
            if missing is not None:
                yield Remark("missed", "missing-backend", missing, backend)
                continue
            context.progress(number, len(usable), f"measuring {backend}")
            rows = {"present": (model, context.backend), backend: (model, backend)}
            try:
                table = gate.measure(rows, context.inputs, processes=_PROCESSES)
            except BackendError as error:
                yield Remark("missed", "backend-failed", str(error), backend)
                continue
            row = table.row(backend)
            ratios[backend] = row.ratio
            yield Remark(
                "analysis",
                "backend-measured",
                f"{backend} takes {row.milliseconds:.3f} ms, {row.ratio:.3f}x the speed of "
                f"{context.backend}",
                backend,
                figures={"milliseconds": row.milliseconds, "ratio": row.ratio},
            )
        context.progress(len(usable), len(usable), "measuring backends")
        best = max(ratios, key=lambda name: ratios[name], default=None)
        if best is None or ratios[best] <= 1.0:
            yield Remark(
                "missed", "no-faster-backend", f"no backend measured faster than {context.backend}"
            )
            return
        yield Proposal.model_validate(
            {"backend": best, "proposer": self.name, "evidence": {"ratio": ratios[best]}}
        )
