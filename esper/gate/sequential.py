"""The sequence of looks: which samples to draw next, or what to conclude. Pure, like `statistics`.

A search stage looks at preset numbers of processes. What it finds must be found again by the same
test on fresh processes. The final estimate comes from those alone, so it does not carry the luck
that got the change selected; what an early stop of the confirmation leaves is measured in
`benchmarks/gate/simulate.py` (`log_bias_of_accepted`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from esper.gate.statistics import Decision, Rule, Samples, decide

Outcome = Literal["accept", "reject", "ambiguous"]
Stage = Literal["search", "confirm"]


@dataclass(frozen=True)
class Draw:
    """Sample `count` more fresh processes for `stage`."""

    stage: Stage
    count: int


@dataclass(frozen=True)
class Conclusion:
    """The verdict; `decision` holds the figures to report and `reason` a sentence."""

    outcome: Outcome
    decision: Decision
    stage: Stage
    reason: str

    @property
    def unconfirmed(self) -> bool:
        """Whether a speed-up was found and time was over before it could be confirmed."""
        return self.outcome == "ambiguous" and self.decision.call == "accept"


def judge(samples: Samples, rule: Rule, stage: Stage, ended: bool = False) -> Draw | Conclusion:
    """One stage: the next draw, or what its looks so far conclude.

    When no more samples can be had (`ended`), the next look is taken early at its own share of the
    error budget; that is sound, since the clock does not know the estimate.
    """
    found: Decision | None = None
    for look in rule.looks:
        enough = len(samples) >= look
        early = ended and not enough and len(samples) >= 2
        if early and found is not None and found.processes == len(samples):
            return _conclude(found, stage, early=True)
        if not enough and not early:
            return Draw(stage, look - len(samples))
        found = decide(samples.first(look), rule, rule.alpha_per_look, horizon=rule.looks[-1])
        if early or found.call != "continue":
            return _conclude(found, stage, early=early)
    assert found is not None  # a rule has at least one look
    return _conclude(found, stage)


def advance(
    search: Samples, confirm: Samples, rule: Rule, ended: Collection[Stage] = ()
) -> Draw | Conclusion:
    """Next draw, or the conclusion, given all samples so far and the stages whose time is over.

    A function of its arguments only: replaying a recorded verdict is calling this with its samples
    and both stages ended.
    """
    step = judge(search, rule, "search", "search" in ended)
    if isinstance(step, Draw) or step.outcome != "accept":
        return step
    second = judge(confirm, rule, "confirm", "confirm" in ended)
    if isinstance(second, Draw) and "confirm" in ended:
        reason = f"{OUT_OF_TIME}{step.reason.removesuffix('.')}, but not confirmed."
        return replace(step, outcome="ambiguous", reason=reason)
    return second


OUT_OF_TIME = "the time budget ended early; "


def _conclude(found: Decision, stage: Stage, early: bool = False) -> Conclusion:
    before = (OUT_OF_TIME if early else "") + ("" if stage == "search" else "not confirmed: ")
    if found.call == "reject":
        return Conclusion("reject", found, stage, before + _below(found))
    if found.call == "continue":
        return Conclusion("ambiguous", found, stage, before + _undecided(found))
    reason = (
        f"on {found.processes} fresh processes {found.speedup:.3f}x, at least {found.lower:.3f}x."
    )
    return Conclusion(
        "accept",
        found,
        stage,
        f"{'found' if stage == 'search' else 'confirmed'} {reason}",
    )


def _below(found: Decision) -> str:
    bar = 1 + found.delta_effective
    return f"{found.speedup:.3f}x (at most {found.upper:.3f}x) does not clear {bar:.3f}x."


def _undecided(found: Decision) -> str:
    return (
        f"{found.speedup:.3f}x, between {factor(found.lower)}x and {factor(found.upper)}x, "
        f"against a bar of {1 + found.delta_effective:.3f}x."
    )


def factor(value: float) -> str:
    """A ratio of times for people: in three decimals, unless too few processes bound it."""
    return f"{value:.3f}" if value < 1000 else f"{value:.0e}"
