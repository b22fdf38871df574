"""What is timed: one inference or training step of one contender, on CPU or CUDA."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from esper.errors import GateError
from esper.gate.backends import backend
from esper.gate.backends.base import Call, Context, Objective, Runner, tensor_leaves

if TYPE_CHECKING:
    from esper.gate.worker import Spec

DETERMINISM_TOLERANCE = 1e-3
"""Relative L2 distance between first and last outputs above which a model counts as
not deterministic. Loose enough for reordered atomics in reduced precision."""


class Step(Protocol):
    """One contender; `shape` is the index of the input."""

    def remember(self) -> None:
        """Run every input once and keep the outputs."""

    def settle(self, shape: int) -> None:
        """One untimed step, so that caches and thread pools are this contender's own again."""

    def time(self, shape: int, repeats: int) -> int:
        """Nanoseconds per step over `repeats` steps."""

    def verify(self, label: str) -> None:
        """Check that outputs are finite and as at first. Raises GateError."""


def build_step(name: str, directory: str, calls: Sequence[Call], spec: Spec) -> Step:
    """Load a prepared contender in this process."""
    context = Context(cast(Objective, spec.objective), spec.threads, spec.device)
    runner = backend(name).load(Path(directory), calls, context)
    clock = CudaClock() if spec.device == "cuda" else WallClock()
    if spec.objective == "training":
        if not isinstance(runner, nn.Module):
            raise GateError(f"backend {name} gave no module to train.")
        return TrainingStep(runner, calls, clock)
    return InferenceStep(runner, calls, clock)


class Clock(Protocol):
    """Nanoseconds per call of `run` over `repeats` calls."""

    def time(self, run: Runner, call: Call, repeats: int) -> int: ...


class WallClock:
    """`perf_counter_ns` around a stretch of steps; right where a call returns when it is done."""

    def time(self, run: Runner, call: Call, repeats: int) -> int:
        args, kwargs = call
        if repeats == 1:
            started = time.perf_counter_ns()
            run(*args, **kwargs)
            return time.perf_counter_ns() - started
        started = time.perf_counter_ns()
        for _ in range(repeats):
            run(*args, **kwargs)
        return (time.perf_counter_ns() - started) // repeats


class CudaClock:
    """CUDA events around each step, after writing over the L2 cache.

    Small problems otherwise live in L2 across repeats and look faster than they are in a network.
    The flush is queued before the first event, so it is not part of the interval.
    """

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = 2 * int(getattr(properties, "L2_cache_size", 0) or 64 * 2**20)
        self._flush = torch.empty(size, dtype=torch.int8, device="cuda")

    def time(self, run: Runner, call: Call, repeats: int) -> int:
        args, kwargs = call
        pairs = []
        torch.cuda.synchronize()
        for _ in range(repeats):
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._flush.zero_()
            begin.record()
            run(*args, **kwargs)
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return int(sum(b.elapsed_time(e) for b, e in pairs) * 1e6 / repeats)


def check_finite(outputs: Any, label: str) -> None:
    """Raises GateError when a floating tensor among `outputs` holds NaN or Inf."""
    for position, tensor in enumerate(tensor_leaves(outputs)):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise GateError(f"output {position} of {label} holds NaN or Inf.")


class InferenceStep:
    """The forward pass under `torch.inference_mode`."""

    def __init__(self, runner: Runner, calls: Sequence[Call], clock: Clock) -> None:
        self._runner, self._calls, self._clock = runner, calls, clock
        self._first: list[list[torch.Tensor]] = []

    def _outputs(self, call: Call) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [t.detach().clone() for t in tensor_leaves(self._runner(*call[0], **call[1]))]

    def remember(self) -> None:
        self._first = [self._outputs(call) for call in self._calls]

    def settle(self, shape: int) -> None:
        args, kwargs = self._calls[shape]
        with torch.inference_mode():
            self._runner(*args, **kwargs)

    def time(self, shape: int, repeats: int) -> int:
        with torch.inference_mode():
            return self._clock.time(self._runner, self._calls[shape], repeats)

    def verify(self, label: str) -> None:
        for shape, call in enumerate(self._calls):
            now = self._outputs(call)
            check_finite(now, f"{label} on input {shape}")
            for position, (a, b) in enumerate(zip(self._first[shape], now, strict=True)):
                if a.is_floating_point():
                    scale = float(a.double().norm()) or 1.0
                    same = float((a.double() - b.double()).norm()) <= DETERMINISM_TOLERANCE * scale
                else:
                    same = bool(torch.equal(a, b))
                if not same:
                    raise GateError(
                        f"output {position} of {label} on input {shape} changed between the first "
                        "and the last run: the model is not deterministic."
                    )


class TrainingStep:
    """Forward, loss, backward, optimizer step (Adam).

    The loss is the mean of squares summed over all floating outputs: it reaches every output and
    costs little. The learning rate is tiny, so that minutes of measuring do not diverge.
    """

    LEARNING_RATE = 1e-7

    def __init__(self, module: nn.Module, calls: Sequence[Call], clock: Clock) -> None:
        self._module, self._calls, self._clock = module, calls, clock
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise GateError("the training objective needs parameters that require gradients.")
        self._optimizer = torch.optim.Adam(parameters, lr=self.LEARNING_RATE)
        self._loss: torch.Tensor | None = None

    def _step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        outputs = [t for t in tensor_leaves(self._module(*args, **kwargs)) if t.requires_grad]
        if not outputs:
            raise GateError("no output of the model depends on its parameters; it cannot train.")
        loss = torch.stack([t.float().square().mean() for t in outputs]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._loss = loss.detach()

    def remember(self) -> None:
        for args, kwargs in self._calls:
            self._step(*args, **kwargs)

    def settle(self, shape: int) -> None:
        args, kwargs = self._calls[shape]
        self._step(*args, **kwargs)

    def time(self, shape: int, repeats: int) -> int:
        return self._clock.time(self._step, self._calls[shape], repeats)

    def verify(self, label: str) -> None:
        if self._loss is None or not bool(torch.isfinite(self._loss)):
            raise GateError(f"the training loss of {label} is NaN or Inf.")
        for name, parameter in self._module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise GateError(f"parameter {name} of {label} became NaN or Inf while training.")
