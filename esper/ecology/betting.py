"""When to stop a probe: two bets on the mean change of the loss, one against each claim.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024,
arXiv:2010.09686). A gambler starts with capital 1 and bets on each paired difference that the mean
lies on one side of the margin; if it does not, the capital is a supermartingale, and by Ville's
inequality it ever reaches 1/error with a probability of at most `error`, whenever one looks. So a
probe may be stopped at any batch, and few batches decide where the effect is clear.

- harmful: the bet against "the mean change is at most the margin" reached 1/error.
- harmless: the bet against "the mean change is at least the margin" reached it.

The theorem needs bounded differences: they are clipped to `spread` margins on either side, and it
is the mean of the clipped differences that the claims are about. A rare disaster that clipping
hides cannot pass for harmless all the same: the plain mean must lie below the margin, too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from esper.ir.ecology import Outcome

_CAUTION = 0.75  # of the largest bet that could not lose everything


@dataclass(frozen=True)
class Rule:
    """What is decided, and how surely.

    Attributes:
        margin: a mean change of the loss above it is harm.
        error: probability of claiming harm where there is none, and the other way round, at most.
        spread: differences are clipped to this many margins; more is slower and clips less.
        least, most: batches before the first and at the last look.
    """

    margin: float = 0.01
    error: float = 0.05
    spread: float = 5.0
    least: int = 4
    most: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (self.margin > 0 and self.spread > 1 and 0 < self.error < 1):
            raise ValueError("margin must be positive, spread above 1, error between 0 and 1")
        if not 1 <= self.least <= self.most:
            raise ValueError("a probe looks at 1 <= least <= most batches")


@dataclass(frozen=True)
class Judgement:
    """What the differences say so far.

    Attributes:
        outcome: harmful, harmless or undecided.
        batches: at which it was decided, or all.
        mean, error: plain mean of the differences up to there and its standard error.
        harmful, harmless: logarithms of the capital for either claim.
        clipped: how many differences lay outside the range.
    """

    outcome: Outcome
    batches: int
    mean: float
    error: float
    harmful: float
    harmless: float
    clipped: int


def judge(differences: Sequence[float], rule: Rule) -> Judgement:
    """What to conclude from paired differences, in their order. A function of its arguments only.

    Args:
        differences: loss sedated minus loss awake, by batch; one that is not finite is harm.
        rule: margin, error and limits.
    """
    range_ = rule.margin * rule.spread
    inside = [_clip(difference, range_) for difference in differences]
    unit = [(value + range_) / (2 * range_) for value in inside]
    margin = (rule.margin + range_) / (2 * range_)
    harmful = _capital(unit, margin)
    harmless = _capital([1 - value for value in unit], 1 - margin)
    bar = -math.log(rule.error)
    outcome: Outcome = "undecided"
    batches = len(unit)
    for count in range(rule.least, len(unit) + 1):
        broken = not all(math.isfinite(d) for d in differences[:count])
        below = not broken and statistics.fmean(differences[:count]) < rule.margin
        if broken or harmful[count - 1] >= bar:
            outcome, batches = "harmful", count
            break
        if harmless[count - 1] >= bar and below:
            outcome, batches = "harmless", count
            break
    seen = [d if math.isfinite(d) else range_ for d in differences[:batches]]
    return Judgement(
        outcome,
        batches,
        statistics.fmean(seen) if seen else 0.0,
        statistics.stdev(seen) / math.sqrt(len(seen)) if len(seen) > 1 else 0.0,
        harmful[batches - 1] if seen else 0.0,
        harmless[batches - 1] if seen else 0.0,
        sum(d != c for d, c in zip(differences[:batches], inside, strict=False)),
    )


def _clip(value: float, range_: float) -> float:
    return range_ if math.isnan(value) else min(max(value, -range_), range_)


def _capital(values: Iterable[float], mean: float) -> list[float]:
    """Log capital after each value of a gambler who bets that the mean is larger than `mean`.

    Each bet is the one that would have grown fastest so far, to second order (aGRAPA, section B.3
    of the paper), from the values before it only.
    """
    log = 0.0
    history: list[float] = []
    total, squares = 0.5, 0.25
    for count, value in enumerate(values, start=1):
        centre = total / count
        variance = squares / count
        edge = centre - mean
        bet = min(max(edge / (variance + edge * edge), 0.0), _CAUTION / mean)
        log += math.log1p(bet * (value - mean))
        history.append(log)
        total += value
        squares += (value - total / (count + 1)) ** 2
    return history
