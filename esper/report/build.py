"""From what `esper.optimize` returns to what the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esper.ir import kernels
from esper.report.data import PassTime, Point, Quality, ReportData, VerdictRow
from esper.report.facts import facts

if TYPE_CHECKING:
    from esper.gate.verdict import Verdict
    from esper.optimization import Result

_SUMS = ("runs", "total")


def from_result(
    result: Result,
    *,
    title: str,
    command: str = "",
    metric: str = "quality",
    timing: Mapping[str, Mapping[str, float]] | None = None,
    environment: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> ReportData:
    """Report of one optimisation.

    Args:
        result: of `esper.optimize`.
        title: name of the model.
        command: the command line, if there was one.
        metric: what the user's evaluation measures.
        timing: `Timing.seconds()`: pass -> phase -> seconds.
        environment: further facts, shown after those that the gate recorded.
        notes: further remarks, shown after those of the model and the measurement.
    """
    changed = bool(result.committed)
    final = result.verdict
    judged = [(what, j.verdict) for what, j in result.judgements if j.verdict is not None]
    quality = _quality(result.quality, metric)
    return ReportData(
        title=title,
        command=command,
        environment={**_environment(result), **(environment or {})},
        before=facts(result.baseline),
        after=facts(result.model) if changed else None,
        records=tuple(result.records),
        # A single accepted judgement is the verdict on the whole and is not shown twice.
        verdicts=tuple(verdict_row(what, v) for what, v in judged if v is not final),
        final=None if final is None else verdict_row("The whole change", final),
        quality=quality,
        points=tuple(_points(result)),
        timing=pass_times(timing or {}),
        exact=result.exact if changed else None,
        finetuned=result.finetuned,
        notes=(*result.baseline.notes, *_notes(result), *notes),
    )


def verdict_row(label: str, verdict: Verdict) -> VerdictRow:
    """A verdict of the gate as a row."""
    return VerdictRow(
        label=label,
        outcome=verdict.outcome,
        speedup=verdict.speedup,
        lower=verdict.lower,
        upper=verdict.upper,
        p=verdict.p_sign,
        rounds=verdict.rounds,
        baseline_backend=verdict.baseline.backend,
        candidate_backend=verdict.candidate.backend,
        baseline_ms=verdict.baseline.milliseconds,
        candidate_ms=verdict.candidate.milliseconds,
        reason=verdict.reason,
    )


def pass_times(timing: Mapping[str, Mapping[str, float]]) -> tuple[PassTime, ...]:
    """Rows of `Timing.seconds()` without their sums."""
    return tuple(
        PassTime(pass_name=name, seconds={p: s for p, s in row.items() if p not in _SUMS})
        for name, row in timing.items()
    )


def _quality(figures: Mapping[str, Any], metric: str) -> Quality | None:
    if not figures:
        return None
    return Quality(
        metric="fidelity" if figures["kind"] == "drift" else metric,
        before=figures["quality_before"],
        after=figures["quality_after"],
        floor=figures["quality_floor"],
    )


def _points(result: Result) -> list[Point]:
    """Candidates of which both time and quality were measured, against the model as given.

    A candidate was timed against what was committed before it: its speedup and its bounds are
    multiplied by those of the commits before.
    """
    points: list[Point] = []
    speedup = lower = upper = 1.0
    for what, judgement in result.judgements:
        verdict = judgement.verdict
        if verdict is None:
            continue
        found = (speedup * verdict.speedup, lower * verdict.lower, upper * verdict.upper)
        if "quality_after" in judgement.figures and verdict is not result.verdict:
            points.append(_point(what, found, judgement.figures, judgement.accepted))
        if judgement.accepted:
            speedup, lower, upper = found
    if result.verdict is not None and result.quality:
        whole = result.verdict
        found = (whole.speedup, whole.lower, whole.upper)
        points.append(_point("the whole change", found, result.quality, whole.accepted))
    return points


def _point(
    label: str, found: tuple[float, float, float], figures: Mapping[str, Any], accepted: bool
) -> Point:
    speedup, lower, upper = found
    return Point(
        label=label,
        speedup=speedup,
        lower=lower,
        upper=upper,
        quality=figures["quality_after"],
        accepted=accepted,
    )


def _environment(result: Result) -> dict[str, str]:
    import platform

    import torch

    verdict = _any_verdict(result)
    if verdict is None:
        from esper.gate.environment import device_name

        device = next((p.device.type for p in result.model.parameters()), "cpu")
        facts_ = {"Device": device, "Device name": device_name(device)}
        versions = {"torch": str(torch.__version__)}
        return {**facts_, "Python": platform.python_version(), **versions}
    where = verdict.environment
    return {
        "Device": where.device,
        "Device name": where.device_name,
        "Threads": str(where.threads),
        "Python": where.python,
        **where.versions,
        "Objective": verdict.objective,
        "Input shapes": "; ".join(_shapes(call) for call in verdict.shapes),
        "Backend of the result": result.backend,
        "Pipeline": result.pipeline,
    }


def _shapes(call: Sequence[Sequence[int]]) -> str:
    return ", ".join("\N{MULTIPLICATION SIGN}".join(map(str, shape)) or "scalar" for shape in call)


def _any_verdict(result: Result) -> Verdict | None:
    found = [j.verdict for _, j in result.judgements if j.verdict is not None]
    return result.verdict or (found[-1] if found else None)


def _notes(result: Result) -> list[str]:
    notes = []
    if inside := kernels.sentence(result.model.graph):
        notes.append(f"{inside[0].upper()}{inside[1:]}.")
    verdict = _any_verdict(result)
    if verdict is not None:
        notes.append(
            f"A bound of an interval is wrong with probability {verdict.alpha:g} at most; "
            "times are medians of one step."
        )
    elif result.committed:
        notes.append("Step time was not measured: that anything became faster is not claimed.")
    if result.committed and not result.quality:
        notes.append("Quality was not judged: there was neither a metric nor calibration data.")
    earlier = sum(j.accepted and j.verdict is not None for _, j in result.judgements)
    if earlier > 1 and result.quality:
        notes.append(
            "In the plot a candidate that was timed after earlier commits carries the product of "
            "their speedups and of their bounds, which makes its interval wider than need be."
        )
    return notes
