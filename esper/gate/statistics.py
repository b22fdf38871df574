"""The decision rule on recorded samples: pure numpy, no torch, no clock.

Data. A round times three contenders in random order: the baseline A, an independent second copy of
it A' (the in-situ A/A calibration), and the candidate B. Rounds are grouped by fresh process.

Estimator. The median of {a - b} and {a' - b} over the rounds of all processes, in natural logs.
Every such difference is symmetric about zero when B equals A, whatever the noise; averaging the
two copies first would not be (the mean of two right-skewed times has a larger median than one of
them, which flatters B).

Bound. A two-level bootstrap. Resampling both levels plainly counts the within-process noise twice
and, with few processes, understates the variation between them. So the medians of processes enter
shrunk to the between-process part of their variance (Davison & Hinkley, *Bootstrap Methods and
their Application*, 1997, section 3.8), corrected for P - 1 degrees of freedom and stretched by the
ratio of Student's to the normal quantile; rounds are resampled in circular blocks because
neighbours share drift. When the between-process variance is estimated to be nil this reduces to
pooling every process, otherwise it behaves like a t interval over processes.
`benchmarks/gate/simulate.py` measures its error rates. The two levels are those of Kalibera &
Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, exp, lgamma, log1p, pi, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from esper.errors import GateError

Array = npt.NDArray[np.float64]
Call = Literal["accept", "reject", "continue"]


@dataclass(frozen=True)
class Samples:
    """Log step times in log seconds; one array per process, shape (rounds, 3): A, A', B."""

    processes: tuple[Array, ...] = ()

    def __post_init__(self) -> None:
        for index, block in enumerate(self.processes):
            if block.ndim != 2 or block.shape[1] != 3 or block.shape[0] < 2:
                raise GateError(
                    f"samples of process {index} have shape {block.shape}; "
                    "expected at least two rounds of (A, A', B)."
                )
            if not np.isfinite(block).all():
                raise GateError(f"samples of process {index} hold a value that is not finite.")

    @classmethod
    def from_lists(cls, data: Sequence[Sequence[Sequence[float]]]) -> Samples:
        return cls(tuple(np.asarray(block, dtype=np.float64) for block in data))

    def to_lists(self) -> list[list[list[float]]]:
        return [[[round(float(v), 6) for v in row] for row in block] for block in self.processes]

    def __len__(self) -> int:
        return len(self.processes)

    def __add__(self, other: Samples) -> Samples:
        return Samples(self.processes + other.processes)

    def first(self, count: int) -> Samples:
        return Samples(self.processes[:count])

    @property
    def rounds(self) -> int:
        return sum(block.shape[0] for block in self.processes)


@dataclass(frozen=True)
class Rule:
    """What is demanded of the samples before a change is accepted.

    `looks` are the cumulative numbers of processes at which the search stage may stop; the error
    budget `1 - confidence` is divided evenly among them in advance. The confirmation has the same
    looks and an error budget of its own.
    """

    delta: float = 0.01
    confidence: float = 0.99
    looks: tuple[int, ...] = (3, 6, 12, 24)
    resamples: int = 2000
    seed: int = 0
    noise_quantile: float = 0.95
    futility_confidence: float = 0.95
    block: int = 2

    def __post_init__(self) -> None:
        if not 0.0 <= self.delta < 1.0:
            raise GateError(f"delta must lie in [0, 1), got {self.delta}.")
        if not 0.5 < self.confidence < 1.0:
            raise GateError(f"confidence must lie in (0.5, 1), got {self.confidence}.")
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 2:
            raise GateError(f"looks must be increasing and start at 2 or more, got {self.looks}.")

    @property
    def alpha(self) -> float:
        return 1.0 - self.confidence

    @property
    def alpha_per_look(self) -> float:
        return self.alpha / len(self.looks)


@dataclass(frozen=True)
class Decision:
    """What one set of samples says at error level `alpha` (one-sided).

    `speedup`, `lower` and `upper` are ratios of baseline to candidate step time (above 1 is
    faster); `standard_error` and `noise` are in log units; `p_sign` is the exact one-sided sign
    test; `delta_effective` the bar after calibration.
    """

    call: Call
    speedup: float
    lower: float
    upper: float
    p_sign: float
    delta_effective: float
    noise: float
    standard_error: float
    between: float
    alpha: float
    processes: int
    rounds: int


def student_quantile(probability: float, df: int) -> float:
    """Upper quantile of Student's t for integer `df`, by bisection on the numeric integral."""
    if not 0.5 < probability < 1.0 or df < 1:
        raise GateError(f"no t quantile for probability {probability} and {df} degrees of freedom.")
    scale = exp(lgamma((df + 1) / 2) - lgamma(df / 2)) / sqrt(df * pi)

    def mass(limit: float) -> float:
        # Substituting t = sqrt(df) tan(u) gives a bounded, smooth integrand: cos(u)^(df - 1).
        u = np.linspace(0.0, float(np.arctan(limit / sqrt(df))), 2001)
        y = np.cos(u) ** (df - 1)
        step = float(u[1] - u[0])
        simpson = y[0] + y[-1] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum()
        return 0.5 + scale * sqrt(df) * step / 3 * float(simpson)

    low, high = 0.0, 1.0
    while mass(high) < probability:
        high *= 2.0
        if high > 1e12:
            break
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < probability else (low, middle)
    return (low + high) / 2


def binomial_tail(wins: int, trials: int) -> float:
    """The chance of at least so many wins when either outcome is equally likely; 1 for no trial."""
    if trials == 0:
        return 1.0
    return sum(comb(trials, k) for k in range(wins, trials + 1)) / (1 << trials)


def sign_test(samples: Samples) -> float:
    """Exact one-sided sign test that B is faster.

    A round counts as a win when B beats both copies of the baseline, as a loss when both beat it,
    and otherwise as a tie, which is left out. Without an effect wins and losses are equally likely.
    """
    wins = losses = 0
    for block in samples.processes:
        wins += int((block[:, 2] < np.minimum(block[:, 0], block[:, 1])).sum())
        losses += int((block[:, 2] > np.maximum(block[:, 0], block[:, 1])).sum())
    return binomial_tail(wins, wins + losses)


def _blocks(
    population: int, size: int, length: int, resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    """Indices of circular block resamples of `size` rows, shape (resamples, size)."""
    length = max(1, min(length, size // 4))
    starts = rng.integers(0, population, size=(resamples, -(-size // length)))
    index = (starts[:, :, None] + np.arange(length)) % population
    return index.reshape(resamples, -1)[:, :size].astype(np.intp)


@dataclass(frozen=True)
class Bootstrap:
    """Point estimate and replicates of one contrast, in log units."""

    estimate: float
    replicates: Array
    between: float

    @property
    def standard_error(self) -> float:
        return float(self.replicates.std())


def bootstrap(contrasts: Sequence[Array], rule: Rule, alpha: float, seed: int) -> Bootstrap:
    """Shrunk two-level bootstrap of the pooled median.

    `contrasts`: per process, shape (rounds, k): k exchangeable differences per round.
    """
    rng = np.random.default_rng([rule.seed, seed])
    count = len(contrasts)
    estimate = float(np.median(np.concatenate(contrasts)))
    medians = np.array([np.median(c) for c in contrasts])
    residuals = np.concatenate([c - m for c, m in zip(contrasts, medians, strict=True)])
    sizes = np.array([c.shape[0] for c in contrasts])
    typical = int(np.median(sizes))
    # How far the median of one process strays by the noise of its rounds alone.
    some = _blocks(len(residuals), typical, rule.block, rule.resamples, rng)
    strays = np.median(residuals[some].reshape(rule.resamples, -1), axis=1)
    within = float(strays.var())
    spread = float(medians.var(ddof=1))
    between = max(0.0, spread - within)
    index = _blocks(len(residuals), len(residuals), rule.block, rule.resamples, rng)
    drawn = residuals[index]
    if between > 0.0:
        quantile = min(alpha, 0.4)
        stretch = student_quantile(1 - quantile, count - 1) / NormalDist().inv_cdf(1 - quantile)
        shrink = sqrt(between / spread * count / (count - 1))
        deviations = (medians - medians.mean()) * shrink * stretch
        chosen = rng.integers(0, count, size=(rule.resamples, count))
        drawn = drawn + np.repeat(deviations[chosen], sizes, axis=1)[:, :, None]
    replicates = estimate + np.median(drawn.reshape(rule.resamples, -1), axis=1)
    return Bootstrap(estimate, replicates, sqrt(between))


def contrast_candidate(block: Array) -> Array:
    """Log ratios baseline / candidate of each round, against each copy: shape (rounds, 2)."""
    return block[:, :2] - block[:, 2:]


def contrast_copies(block: Array) -> Array:
    """Log ratios A / A' of each round: what this design reports when nothing has changed."""
    return block[:, :1] - block[:, 1:2]


def calibration_noise(samples: Samples, rule: Rule) -> float:
    """The A/A noise in log units: the `noise_quantile` of |log A / A'| as estimated by this very
    design on these very rounds. It covers a bias between copies as well as scatter.
    """
    copies = bootstrap([contrast_copies(b) for b in samples.processes], rule, 0.05, seed=2)
    return float(np.quantile(np.abs(copies.replicates), rule.noise_quantile))


def decide(samples: Samples, rule: Rule, alpha: float | None = None, horizon: int = 0) -> Decision:
    """Judge samples at one-sided error `alpha` (default: the whole of `1 - rule.confidence`).

    `accept`: the lower bound beats 1 + delta_effective and the sign test agrees. `reject`: the
    change is credibly below the bar, or would still miss it at `horizon` processes if the present
    estimate plus its uncertainty came true. `continue`: neither.
    """
    if len(samples) < 2:
        raise GateError(f"a decision needs samples of at least 2 processes, got {len(samples)}.")
    level = rule.alpha if alpha is None else alpha
    boot = bootstrap([contrast_candidate(b) for b in samples.processes], rule, level, seed=1)
    noise = calibration_noise(samples, rule)
    bar = max(log1p(rule.delta), noise)
    lower, upper = (float(q) for q in np.quantile(boot.replicates, [level, 1 - level]))
    p_sign = sign_test(samples)
    error = boot.standard_error
    call: Call = "continue"
    if lower > bar and p_sign < level:
        call = "accept"
    else:
        hope = boot.estimate + NormalDist().inv_cdf(rule.futility_confidence) * error
        needed = log1p(rule.delta)
        if horizon > len(samples):
            final_error = error * sqrt(len(samples) / horizon)
            needed += NormalDist().inv_cdf(1 - level) * final_error
        if hope < needed:
            call = "reject"
    return Decision(
        call=call,
        speedup=exp(boot.estimate),
        lower=exp(lower),
        upper=exp(upper),
        p_sign=p_sign,
        delta_effective=exp(bar) - 1.0,
        noise=noise,
        standard_error=error,
        between=boot.between,
        alpha=level,
        processes=len(samples),
        rounds=samples.rounds,
    )
