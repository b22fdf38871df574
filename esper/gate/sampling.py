"""Samples from fresh processes: who runs, how long, and what comes back as arrays."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.gate.backends.base import Context
from esper.gate.launcher import Launcher
from esper.gate.worker import Contender, Spec

Progress = Callable[[str], None]
"""Called with one line of text now and then while measuring."""


@dataclass(frozen=True)
class Effort:
    """How much one process measures.

    `seconds` of timing per process, in `min_rounds` to `max_rounds` rounds; a timed stretch lasts
    at least about `visit_seconds` by repeating short steps, so that the clock and the call cost
    nothing in comparison. Where the steps are so long that `min_rounds` would not end by the
    deadline of the first process, there are fewer, but not less than `least_rounds`, nor than what
    takes as long as getting ready: a process is one sample of where memory was placed, so more
    processes of fewer rounds tell more. `settle` runs one untimed step before each stretch: the
    other contenders have just emptied the caches, which in use they would not; None: where it
    matters, see `settles`. `timeout` is per process.
    """

    seconds: float = 2.0
    warmup_seconds: float = 0.15
    visit_seconds: float = 0.001
    min_rounds: int = 24
    least_rounds: int = 6
    max_rounds: int = 120
    settle: bool | None = None
    timeout: float = 300.0


def settles(backends: Collection[str], smallest: int, cache: int) -> bool:
    """Whether contenders need a step to themselves before they are timed.

    Not when all run on one backend, so that no thread pool of another is still spinning, and the
    `smallest` of them has more bytes than the last-level `cache`: its weights come from memory at
    every step, whoever ran before. Settling then only keeps the timed steps further apart, and the
    noise of a machine is alike only within moments: MiniLM on a shared machine needs four times as
    many rounds for the same error.
    """
    return len(set(backends)) > 1 or smallest <= cache


@dataclass
class Sampler:
    """Draws processes for one set of prepared contenders.

    The first process chooses rounds and repeats; all later ones use the same, so that every
    process weighs alike.
    """

    launcher: Launcher
    contenders: Sequence[Contender]
    inputs: Path
    context: Context
    effort: Effort
    weights: Sequence[float]
    seed: int
    settle: bool
    modules: tuple[str, ...] = ()
    _rounds: int | None = field(default=None, init=False)
    _repeats: tuple[int, ...] | None = field(default=None, init=False)
    _drawn: int = field(default=0, init=False)

    def draw(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        deadline: float | None = None,
    ) -> npt.NDArray[np.float64]:
        """Log seconds of one fresh process: (rounds, contenders), each the weighted whole step.

        `deadline`: the `time.monotonic()` by which the first process aims to end, see `Effort`.
        """
        result = self.launcher.run(self._spec(deadline), self.effort.timeout, progress)
        self._rounds = int(result["rounds"])
        self._repeats = tuple(int(r) for r in result["repeats"])
        return weighted_log_seconds(result, self.weights)

    def _spec(self, deadline: float | None) -> Spec:
        seed = random.Random(f"{self.seed}/{self._drawn}").getrandbits(32)
        self._drawn += 1
        return Spec(
            contenders=tuple(self.contenders),
            inputs=str(self.inputs),
            objective=self.context.objective,
            device=self.context.device,
            threads=self.context.threads,
            seed=seed,
            seconds=self.effort.seconds,
            visit_seconds=self.effort.visit_seconds,
            warmup_seconds=self.effort.warmup_seconds,
            min_rounds=self.effort.min_rounds,
            max_rounds=self.effort.max_rounds,
            least_rounds=self.effort.least_rounds,
            deadline=deadline,
            settle=self.settle,
            rounds=self._rounds,
            repeats=self._repeats,
            modules=self.modules,
        )


def weighted_log_seconds(
    result: dict[str, Any], weights: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Logs of sum_i w_i t_i per round and contender; `times`: nanoseconds, [round][shape][who]."""
    times = np.asarray(result["times"], dtype=np.float64) / 1e9
    share = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
    total = np.einsum("rsc,s->rc", times, share)
    logs: npt.NDArray[np.float64] = np.log(np.maximum(total, 1e-9))
    return logs
