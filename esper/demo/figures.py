"""From runs and logs to the parts of a page."""

from __future__ import annotations

from collections.abc import Sequence

from esper.demo.page import Arm, Curve, Mark, median_curve
from esper.demo.runs import STRUCTURAL, Run
from esper.recorder.log import Log

_WINDOW = 9  # losses under a median, for the eye


def arm(name: str, runs: Sequence[Run], *, loss: bool = False) -> Arm:
    """The figures of one way of training.

    Args:
        name: of the arm.
        runs: one a seed.
        loss: the metric is the negative test loss, higher being better; else the accuracy.
    """
    return Arm(
        name,
        tuple(-run.loss if loss else run.accuracy for run in runs),
        tuple(run.cost for run in runs),
        tuple(run.parameters for run in runs),
        tuple(run.churn for run in runs),
        sum(run.failed for run in runs),
    )


def curve(name: str, runs: Sequence[Run]) -> Curve:
    """The median over runs of the training loss, smoothed by running medians."""
    return median_curve(name, [smooth(run.losses) for run in runs])


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running medians over nine neighbours."""
    half = _WINDOW // 2
    found = []
    for i, (tick, _) in enumerate(points):
        near = sorted(y for _, y in points[max(0, i - half) : i + half + 1])
        found.append((tick, near[len(near) // 2]))
    return found


def marks(log: Log) -> tuple[Mark, ...]:
    """What changed the structure when, with codes for `esper why`."""
    found = []
    for event in log:
        if event.kind == "rewrite":
            proposal = next(c for c in log.causes(event) if c.kind == "proposal").payload.proposal
            if proposal["type"] in STRUCTURAL:
                found.append(Mark(event.tick, event.payload.summary, event.code))
    return tuple(found)
