"""A clock whose times are made up, so that what is done with times can be tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.contender import AbsentError, Built, Call, Contender
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.problem import Problem
from esper_kernels.roofline import Work

LAYER = Layer("toy", "up", 24, 16, True)


class FakeTimed:
    """Really calls, and says that it took as long as the contender's script does."""

    def __init__(self, calls: Sequence[Call], x: Tensor, log: list[str]) -> None:
        self._calls = calls
        self._x = x
        self._log = log
        self._visits = 0
        self._output = calls[0](x)
        self.name, self.script = calls[0].plan  # type: ignore[attr-defined]
        self.warm = self.script(-1)

    def seconds(self) -> float:
        self._output = self._calls[self._visits % len(self._calls)](self._x)
        self._visits += 1
        self._log.append(self.name)
        seconds: float = self.script(self._visits - 1)
        return seconds

    def output(self) -> Any:
        return self._output


@dataclass
class FakeClock:
    """See `timing.Clock`."""

    device: str = "cpu"
    kind: str = "none"
    rotated: int = 10_000
    alone: bool = False
    log: list[str] = field(default_factory=list)
    copies: dict[str, int] = field(default_factory=dict)

    def prepare(self, calls: Sequence[Call], x: Tensor) -> FakeTimed:
        timed = FakeTimed(calls, x, self.log)
        self.copies[timed.name] = len(calls)
        return timed


def contender(
    name: str,
    seconds: float | Callable[[int], float],
    *,
    role: str = "peer",
    compression: str = "dense",
    density: float = 1.0,
    off: float = 0.0,
    refuses: str = "",
    dies_at: int = 0,
) -> Contender:
    """A dense layer that claims to take `seconds`, and is wrong by `off`, or refuses, or dies.

    Args:
        seconds: by number of the visit (-1: warm), or always the same.
        dies_at: rows from which on the call raises; 0 for never.
    """
    script = seconds if callable(seconds) else lambda visit: seconds

    def build(problem: Problem) -> Built:
        if refuses:
            raise AbsentError(refuses)
        (weight,) = problem.weights

        def make() -> Call:
            own = weight.clone()

            def call(x: Tensor) -> Tensor:
                if dies_at and len(x) >= dies_at:
                    raise RuntimeError("too many rows\nsecond line")
                return functional.linear(x, own, problem.bias) + off

            call.plan = (name, script)  # type: ignore[attr-defined]
            return call

        def work(m: int) -> Work:
            return Work(100.0 * m, 1000.0, "fp32")

        return Built(make, weight.nbytes, problem.reference(weight), 1e-5, work)

    return Contender(name, role, compression, density, build)  # type: ignore[arg-type]


def problem(rows: Sequence[int] = (3, 40)) -> Problem:
    """The toy layer."""
    return Problem(LAYER, rows, torch.float32, "cpu", 0)


def standard(*more: Contender) -> list[Contender]:
    """The baseline and its copy, and others."""
    return [
        contender("dense", 1.0, role="dense"),
        contender("dense, again", 1.0, role="again"),
        *more,
    ]
