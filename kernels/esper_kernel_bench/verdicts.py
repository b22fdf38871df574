"""FAST, SLOW, SAME or AMBIGUOUS: what samples say about two contenders, and how surely.

The statistics are the gate's (`esper.gate.statistics`): the median log ratio of paired rounds, with
bounds from a bootstrap over placements and rounds, and an exact sign test. An effect has to beat
what the same design reports for two copies of one and the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log1p
from typing import Literal

import numpy as np

from esper.gate.statistics import Array, Bootstrap, Rule, binomial_tail, bootstrap

Outcome = Literal["FAST", "SLOW", "SAME", "AMBIGUOUS"]
RULE = Rule(delta=0.01, confidence=0.99)
SAME = 0.05  # a ratio whose whole interval is nearer to 1 than this is called the same
Samples = Sequence[Sequence[float]]
"""Seconds, by placement and round."""


@dataclass(frozen=True)
class Verdict:
    """How one contender compares with another.

    Attributes:
        ratio: of the other's time to this one's, the median of paired rounds; above 1 is faster.
        lower, upper: one-sided bounds at `RULE.confidence`.
        p_sign: exact one-sided sign test in the direction of the ratio; None where rounds are not
            paired.
        bar: what the ratio has to exceed, or its inverse, to count: 1 + delta or the noise.
    """

    outcome: Outcome
    ratio: float
    lower: float
    upper: float
    p_sign: float | None
    bar: float


def logs(samples: Samples) -> list[Array]:
    """Natural logs of seconds, (rounds, 1) for each placement."""
    return [np.log(np.asarray(some))[:, None] for some in samples]


def log_ratios(other: Samples, own: Samples) -> list[Array]:
    """Natural logs of other / own in each round, (rounds, 1) for each placement."""
    return [o - s for o, s in zip(logs(other), logs(own), strict=True)]


def estimate(contrasts: Sequence[Array]) -> Bootstrap:
    """The gate's bootstrap of the pooled median."""
    return bootstrap(contrasts, RULE, RULE.alpha, seed=1)


def noise(base: Samples, again: Samples) -> float:
    """What this design reports for two copies of one call: the 95% quantile of |log ratio|."""
    replicates = estimate(log_ratios(base, again)).replicates
    return float(np.quantile(np.abs(replicates), RULE.noise_quantile))


def judge(other: Samples, own: Samples, noise: float = 0.0) -> Verdict:
    """Compare samples of the same rounds; `noise` in log units."""
    contrasts = log_ratios(other, own)
    boot = estimate(contrasts)
    rounds = np.concatenate(contrasts)
    wins, losses = int((rounds > 0).sum()), int((rounds < 0).sum())
    ahead = wins if boot.estimate >= 0 else losses
    lower, upper = (float(q) for q in np.quantile(boot.replicates, [RULE.alpha, RULE.confidence]))
    return call(boot.estimate, lower, upper, noise, binomial_tail(ahead, wins + losses))


def call(
    centre: float, lower: float, upper: float, noise: float, p_sign: float | None = None
) -> Verdict:
    """The verdict on a log ratio with its one-sided bounds."""
    bar = max(log1p(RULE.delta), noise)
    sure = p_sign is None or p_sign < RULE.alpha
    outcome: Outcome = "AMBIGUOUS"
    if sure and lower > bar:
        outcome = "FAST"
    elif sure and upper < -bar:
        outcome = "SLOW"
    elif max(-lower, upper) < log1p(SAME):
        outcome = "SAME"
    return Verdict(outcome, exp(centre), exp(lower), exp(upper), p_sign, exp(bar))
