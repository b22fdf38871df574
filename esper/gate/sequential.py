"""The sequence of looks: which samples to draw next, or what to conclude. Pure, like `statistics`.

A search stage looks at preset numbers of processes. What it finds is confirmed on fresh processes
whose number is fixed before the first of them runs, so the final estimate, which comes from the
confirmation alone, carries no winner's curse.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, log1p
from statistics import NormalDist
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


def planned_confirmation(found: Decision, rule: Rule) -> int:
    """Processes for the confirmation: enough to succeed with probability about 0.95 if the truth
    lies halfway between the lower bound and the estimate of the search stage."""
    effect = (log(found.speedup) + log(found.lower)) / 2
    room = effect - max(log1p(rule.delta), log1p(found.delta_effective))
    demand = NormalDist().inv_cdf(1 - rule.alpha) + NormalDist().inv_cdf(0.95)
    if room <= 0.0:
        return rule.looks[-1]
    one = found.standard_error * found.processes**0.5
    needed = int((demand * one / room) ** 2) + 1
    return max(rule.confirm, min(needed, rule.looks[-1]))


def advance(search: Samples, confirm: Samples, rule: Rule) -> Draw | Conclusion:
    """Next draw, or the conclusion, given all samples so far.

    A function of the samples only: replaying a recorded verdict is calling this with its samples.
    """
    if len(search) < rule.looks[0]:
        return Draw("search", rule.looks[0] - len(search))
    for number, look in enumerate(rule.looks):
        if len(search) < look:
            return Draw("search", look - len(search))
        found = decide(search.first(look), rule, rule.alpha_per_look, horizon=rule.looks[-1])
        last = number == len(rule.looks) - 1
        if found.call == "reject":
            return Conclusion("reject", found, "search", _below(found))
        if found.call == "accept":
            break
        if last:
            return Conclusion("ambiguous", found, "search", _undecided(found))
    planned = planned_confirmation(found, rule)
    if len(confirm) < planned:
        return Draw("confirm", planned - len(confirm))
    final = decide(confirm.first(planned), rule)
    if final.call == "accept":
        reason = (
            f"confirmed on {final.processes} fresh processes: {final.speedup:.3f}x, "
            f"at least {final.lower:.3f}x."
        )
        return Conclusion("accept", final, "confirm", reason)
    if final.call == "reject":
        return Conclusion("reject", final, "confirm", "not confirmed: " + _below(final))
    return Conclusion("ambiguous", final, "confirm", "not confirmed: " + _undecided(final))


def exhausted(search: Samples, confirm: Samples, rule: Rule) -> Conclusion:
    """The conclusion when the time budget ends first: never an acceptance."""
    samples, stage = (confirm, "confirm") if len(confirm) >= 2 else (search, "search")
    figures = decide(samples, rule)
    return Conclusion(
        "ambiguous",
        figures,
        "confirm" if stage == "confirm" else "search",
        "the time budget ended before the evidence sufficed: " + _undecided(figures),
    )


def _below(found: Decision) -> str:
    bar = 1 + found.delta_effective
    return f"{found.speedup:.3f}x (at most {found.upper:.3f}x) does not clear {bar:.3f}x."


def _undecided(found: Decision) -> str:
    return (
        f"{found.speedup:.3f}x, between {found.lower:.3f}x and {found.upper:.3f}x, "
        f"against a bar of {1 + found.delta_effective:.3f}x."
    )
