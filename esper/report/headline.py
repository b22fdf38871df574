"""The one sentence that says what became of the model."""

from __future__ import annotations

from esper.report import numbers
from esper.report.data import Quality, ReportData, VerdictRow


def headline(data: ReportData) -> str:
    """One sentence. Claims speed only when the gate accepted; a refusal is told as one."""
    applied = sum(r.kind == "passed" and r.proposal is not None for r in data.records)
    if applied:
        return _changed(data, applied)
    return _unchanged(data)


def _changed(data: ReportData, applied: int) -> str:
    cost = _quality(data.quality)
    changes = "1 change was" if applied == 1 else f"{applied} changes were"
    final = data.final
    if final is None:
        cost = f"; {cost}" if cost else ""
        return f"{changes} applied and not measured: nothing is claimed about speed{cost}."
    figure = _figure(final)
    if final.outcome == "accept" and final.speedup > 1.0:
        return f"Faster by {figure}{f' at {cost}' if cost else ''}."
    if final.outcome == "ambiguous":
        return f"{changes} applied, but whether it is faster was not settled: {figure}."
    return f"{changes} applied, and it is not faster: {figure}."


def _unchanged(data: ReportData) -> str:
    asked = [r for r in data.records if r.proposal is not None]
    if not asked:
        return "Left as it was: nothing was proposed."
    measured = [v for v in data.verdicts if v.outcome != "accept"]
    failed = sum(r.kind == "failure" for r in asked)
    what = "the one proposal was" if len(asked) == 1 else f"all {len(asked)} proposals were"
    broke = (
        f" ({failed} failed and {'was' if failed == 1 else 'were'} rolled back)" if failed else ""
    )
    best = max(measured, key=lambda v: v.speedup, default=None)
    if best is None:
        return f"Left as it was: {what} refused{broke} before anything was measured."
    return (
        f"Left as it was: {what} refused{broke}; the best that was measured gave {_figure(best)}."
    )


def _figure(verdict: VerdictRow) -> str:
    span = numbers.interval(verdict.lower, verdict.upper)
    return f"{numbers.times(verdict.speedup)} {span}".rstrip()


def _quality(quality: Quality | None) -> str:
    if quality is None or quality.after is None:
        return ""
    return f"{quality.metric} {numbers.quality(quality.after)} of {numbers.quality(quality.before)}"
