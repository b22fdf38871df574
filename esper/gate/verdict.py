"""What a comparison found, as data that survives JSON and can be judged again."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from esper.errors import GateError
from esper.gate.sequential import Conclusion, Draw, Outcome, Stage, advance, factor
from esper.gate.statistics import Rule, Samples


class Side(BaseModel):
    """One side of a comparison. `milliseconds`: median over rounds of the weighted step time;
    `parameter_bytes`: parameters and buffers, tied ones once; `artifact_bytes`: the files
    that are deployed.
    """

    model_config = ConfigDict(frozen=True)

    backend: str
    milliseconds: float
    parameter_bytes: int
    artifact_bytes: int


class Environment(BaseModel):
    """Where it was measured."""

    model_config = ConfigDict(frozen=True)

    device: str
    device_name: str
    threads: int
    python: str
    versions: dict[str, str]


class Recorded(BaseModel):
    """Log seconds of A, A' and B: [process][round][3]. `search` chose, `confirm` judged."""

    model_config = ConfigDict(frozen=True)

    search: list[list[list[float]]]
    confirm: list[list[list[float]]]


class Verdict(BaseModel):
    """The result of `Gate.compare`.

    `speedup` is baseline time over candidate time of the whole weighted step, with one-sided
    bounds `lower` and `upper` at error `alpha` each; all three come from the confirmation samples
    when there are any. `delta_effective` is the bar after A/A calibration. `seconds_needed`: where
    a speed-up was found but time was over before it was confirmed, about the `budget_seconds` that
    confirming takes; otherwise None.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    speedup: float
    lower: float
    upper: float
    alpha: float
    p_sign: float
    delta_effective: float
    noise: float
    stage: Stage
    processes: int
    rounds: int
    seconds: float
    objective: Literal["inference", "training"]
    baseline: Side
    candidate: Side
    weights: list[float]
    shapes: list[list[list[int]]]
    environment: Environment
    rule: Rule
    samples: Recorded
    backends_tried: dict[str, str] = {}
    seconds_needed: float | None = None

    @property
    def accepted(self) -> bool:
        return self.outcome == "accept"

    @property
    def interval(self) -> tuple[float, float]:
        return self.lower, self.upper

    def decide_again(self, rule: Rule | None = None) -> Conclusion:
        """Replay the recorded samples under `rule` (default: the rule used then).

        Another rule may want more samples than were drawn; the conclusion is then `ambiguous`.
        """
        used = rule or self.rule
        return replay(
            Samples.from_lists(self.samples.search),
            Samples.from_lists(self.samples.confirm),
            used,
        )

    def summary(self) -> str:
        """One line for people."""
        word = {"accept": "accepted", "reject": "rejected", "ambiguous": "ambiguous"}[self.outcome]
        return (
            f"{word}: {self.baseline.milliseconds:.3f} ms ({self.baseline.backend}) -> "
            f"{self.candidate.milliseconds:.3f} ms ({self.candidate.backend}), "
            f"{self.speedup:.3f}x [{factor(self.lower)}, {factor(self.upper)}]; {self.reason}"
        )


def replay(search: Samples, confirm: Samples, rule: Rule) -> Conclusion:
    """The conclusion `rule` draws from recorded samples.

    Raises GateError for samples of fewer than two processes.
    """
    step = advance(search, confirm, rule, ended=("search", "confirm"))
    if isinstance(step, Draw):
        raise GateError("a verdict needs recorded samples of at least 2 processes.")
    return step
