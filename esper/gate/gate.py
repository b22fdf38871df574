"""The acceptance gate: is the candidate faster than the baseline, as measured here?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from esper.errors import BackendError, GateError
from esper.gate.backends import NAMES, usable
from esper.gate.backends.base import Context, Objective
from esper.gate.environment import environment, parameter_bytes
from esper.gate.inputs import Inputs, normalise
from esper.gate.launcher import Launcher
from esper.gate.prepared import Prepared, Workshop
from esper.gate.sampling import Effort, Sampler
from esper.gate.sequential import Conclusion, Stage, advance
from esper.gate.statistics import Rule, Samples
from esper.gate.verdict import Recorded, Side, Verdict

if TYPE_CHECKING:
    from esper.gate.table import Table

Say = Callable[[str], None]
"""Called with a line of progress now and then."""


def silent(_: str) -> None:
    """No progress."""


_AIM = 0.9
"""Share of its time that the first process of a stage aims at; later ones may take longer."""

_PROBING = 0.25
"""Share of the budget for choosing backends, where both sides choose theirs."""


@dataclass(frozen=True)
class Gate:
    """How candidates are judged. Immutable; one gate serves any number of comparisons.

    Args:
        objective: `inference` (forward pass) or `training` (forward, backward, Adam step).
        backend: `auto` measures the usable ones for each side and takes that side's fastest;
            otherwise both sides run on the one named.
        delta: least speed-up worth having, 0.01 = 1%; the A/A noise may raise it.
        confidence: of the one-sided bound that must clear the bar.
        threads: intra-op threads, the same for every contender; None: torch's setting here.
        budget_seconds: no new process starts that would end after this, counted from the call; the
            rule then judges what there is. Conversion for a backend counts, but is not cut short.
            Where steps are long, processes measure fewer rounds so as to fit.
        seed: fixes orders and resampling, not the clock.
        device: `cpu` or `cuda`.
        effort: how much each process measures.
        looks: cumulative numbers of processes at which a stage may stop, see `Rule`.
        modules: imported in each measured process (custom ops).

    Raises:
        GateError: a value is out of range, or the device is not there.
        BackendError: the backend is unknown, not installed, or of no use for objective or device.
    """

    objective: Objective = "inference"
    backend: str = "auto"
    delta: float = 0.01
    confidence: float = 0.99
    threads: int | None = None
    budget_seconds: float = 80.0
    seed: int = 0
    device: str = "cpu"
    effort: Effort = field(default_factory=Effort)
    looks: tuple[int, ...] = Rule.looks
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.objective not in ("inference", "training"):
            raise GateError(f"objective must be inference or training, got {self.objective!r}.")
        if self.backend != "auto" and self.backend not in NAMES:
            raise BackendError(
                f"unknown backend {self.backend!r}; choose auto or one of {', '.join(NAMES)}."
            )
        if self.threads is not None and self.threads < 1:
            raise GateError(f"threads must be at least 1, got {self.threads}.")
        if not self.budget_seconds > 0:
            raise GateError(f"budget_seconds must be positive, got {self.budget_seconds}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise GateError("device cuda was asked for but torch finds no CUDA device here.")
        if self.device not in ("cpu", "cuda"):
            raise GateError(f"device must be cpu or cuda, got {self.device!r}.")
        if self.backend != "auto" and (reason := usable(self.backend, self.context)) is not None:
            raise BackendError(reason)
        _ = self.rule

    @property
    def rule(self) -> Rule:
        return Rule(
            delta=self.delta,
            confidence=self.confidence,
            looks=self.looks,
            seed=self.seed,
        )

    @property
    def context(self) -> Context:
        return Context(self.objective, self.threads or torch.get_num_threads(), self.device)

    def compare(
        self,
        baseline: nn.Module,
        candidate: nn.Module,
        inputs: Inputs,
        *,
        backends: tuple[str, str] | None = None,
        launcher: Launcher | None = None,
        say: Say = silent,
    ) -> Verdict:
        """Measure both and decide.

        Args:
            baseline, candidate: modules with the same call signature, `esper.Model` or traceable.
            inputs: `(args, kwargs)`, a list of those, or of `(weight, args, kwargs)`: a step is the
                weighted sum over all.
            backends: of baseline and candidate, instead of `backend`; how two backends compare.
            launcher: shared among comparisons it saves each the start of torch.

        Raises:
            GateError: a process died, took too long, or an output was not finite.
            BackendError: a backend is missing or cannot run a model.
        """
        started = time.monotonic()
        if launcher is None:
            with Launcher() as own:
                return self.compare(
                    baseline,
                    candidate,
                    inputs,
                    backends=backends,
                    launcher=own,
                    say=say,
                )
        calls, weights = normalise(inputs)
        with Workshop(launcher, calls, weights, self.context, self.effort, self.modules) as shop:
            tried: dict[str, str] = {}
            if backends is None and self.backend != "auto":
                backends = (self.backend, self.backend)
            if backends is not None:
                sides = (
                    shop.prepare(baseline, backends[0]),
                    shop.prepare(candidate, backends[1]),
                )
            else:
                probing = _PROBING * self.budget_seconds / 2
                first = shop.fastest(baseline, "baseline", tried, self.seed, say, probing)
                sides = (
                    first,
                    shop.fastest(candidate, "candidate", tried, self.seed, say, probing),
                )
            sampler = shop.sampler([sides[0], sides[0], sides[1]], self.seed)
            search, confirm, end, needed = self._sample(sampler, started, say)
        samples = confirm if end.stage == "confirm" else search
        medians = np.exp(np.median(np.concatenate(samples.processes), axis=0)) * 1e3
        figures = end.decision
        return Verdict(
            outcome=end.outcome,
            reason=end.reason if needed is None else _needing(end.reason, needed),
            seconds_needed=needed,
            speedup=figures.speedup,
            lower=figures.lower,
            upper=figures.upper,
            alpha=figures.alpha,
            p_sign=figures.p_sign,
            delta_effective=figures.delta_effective,
            noise=figures.noise,
            stage=end.stage,
            processes=len(search) + len(confirm),
            rounds=search.rounds + confirm.rounds,
            seconds=time.monotonic() - started,
            objective=self.objective,
            baseline=_side(sides[0], baseline, float(medians[0])),
            candidate=_side(sides[1], candidate, float(medians[2])),
            weights=weights,
            shapes=shop.shapes,
            environment=environment(self.context, [s.backend for s in sides]),
            rule=self.rule,
            samples=Recorded(search=search.to_lists(), confirm=confirm.to_lists()),
            backends_tried=tried,
        )

    def measure(
        self,
        models: Mapping[str, tuple[nn.Module, str]],
        inputs: Inputs,
        *,
        processes: int = 6,
        launcher: Launcher | None = None,
        say: Say = silent,
    ) -> Table:
        """Time any number of (model, backend) rows in the same rounds, for side-by-side tables.

        The first row is the baseline of the paired ratios. A description, not an acceptance: the
        bounds are one-sided at `confidence` for each row by itself.
        """
        from esper.gate.table import measure_rows

        if launcher is None:
            with Launcher() as own:
                return measure_rows(self, models, inputs, processes, own, say)
        return measure_rows(self, models, inputs, processes, launcher, say)

    def _sample(
        self, sampler: Sampler, started: float, say: Say
    ) -> tuple[Samples, Samples, Conclusion, float | None]:
        """Draw processes until the rule concludes or time is over.

        The search may use half of the time, so that what it finds can still be confirmed. Last in
        the answer: the budget that it takes to confirm what was found, where time was over before.
        """
        drawn: dict[Stage, Samples] = {"search": Samples(), "confirm": Samples()}
        share: dict[Stage, float] = {"search": 0.5, "confirm": 1.0}
        ended: set[Stage] = set()
        slowest = 0.0
        first_look = self.rule.looks[0]
        ready = time.monotonic()
        searching = started + share["search"] * self.budget_seconds - ready
        deadline = ready + _AIM * searching / first_look
        while True:
            step = advance(drawn["search"], drawn["confirm"], self.rule, ended)
            if isinstance(step, Conclusion):
                needed = None
                if step.unconfirmed:
                    stage_seconds = ready - started + first_look * slowest / _AIM
                    needed = 10.0 * ceil(stage_seconds / share["search"] / 10.0)
                return drawn["search"], drawn["confirm"], step, needed
            stage = step.stage
            total = len(drawn[stage]) + step.count
            while len(drawn[stage]) < total:
                begun = time.monotonic()
                late = begun + slowest > started + share[stage] * self.budget_seconds
                if late and (stage == "confirm" or len(drawn["search"]) >= 2):
                    ended.add(stage)
                    break
                say(f"{stage}: process {len(drawn[stage]) + 1} of {total}")
                drawn[stage] = drawn[stage] + Samples((sampler.draw(deadline=deadline),))
                slowest = max(slowest, time.monotonic() - begun)


def _needing(reason: str, seconds: float) -> str:
    return f"{reason.removesuffix('.')}: that needs a budget of about {seconds:.0f} s."


def _side(prepared: Prepared, model: nn.Module, milliseconds: float) -> Side:
    return Side(
        backend=prepared.backend,
        milliseconds=milliseconds,
        parameter_bytes=parameter_bytes(model),
        artifact_bytes=prepared.bytes,
    )


def usable_backends(context: Context) -> dict[str, str | None]:
    """Every backend, with None if usable here and else the reason why not."""
    return {name: usable(name, context) for name in NAMES}
