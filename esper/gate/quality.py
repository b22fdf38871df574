"""The quality budget: what a change may cost in accuracy, or in drift where no metric exists."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from esper.errors import QualityError
from esper.gate.backends.base import Call, tensor_leaves
from esper.gate.environment import parameter_bytes

Evaluate = Callable[[Any], float]
"""The user's metric of a module; higher is better."""


class NoMetricError(QualityError):
    """The metric raised or gave no finite number."""


@runtime_checkable
class LossLike(Protocol):
    """Anything with an amount and a flag whether that is relative."""

    @property
    def amount(self) -> float: ...

    @property
    def relative(self) -> bool: ...


@dataclass(frozen=True)
class MaxLoss:
    """The largest admissible loss: a fraction of the baseline's quality, or an absolute amount."""

    amount: float
    relative: bool

    def __post_init__(self) -> None:
        if not math.isfinite(self.amount) or self.amount < 0:
            raise QualityError(
                f"the largest loss of quality must be a finite number of 0 or more, got "
                f"{self.amount}."
            )

    @classmethod
    def of(cls, value: float | str | LossLike) -> MaxLoss:
        """`0.01` and `"1%"` are relative; `"0.5"` and `"0.5 absolute"` are absolute."""
        if isinstance(value, (int, float)):
            return cls(float(value), True)
        if isinstance(value, LossLike):
            return cls(value.amount, value.relative)
        text = str(value).strip()
        relative = text.endswith("%")
        number = text.removesuffix("%").removesuffix("absolute").strip()
        try:
            amount = float(number)
        except ValueError:
            raise QualityError(
                f"the largest loss is a percentage (1%) or a number (0.5), not {text!r}."
            ) from None
        return cls(amount / 100 if relative else amount, relative)

    def floor(self, baseline: float) -> float:
        """The least admissible quality."""
        return baseline - (abs(baseline) * self.amount if self.relative else self.amount)

    def __str__(self) -> str:
        return f"{self.amount * 100:g}%" if self.relative else f"{self.amount:g}"


@dataclass(frozen=True)
class Quality:
    """Quality of a candidate. `kind` is `metric` or `drift`; for drift, `before` is 1 and `after`
    is 1 minus the share of output energy that changed.
    """

    admissible: bool
    kind: str
    before: float
    after: float
    floor: float
    reason: str
    parameter_bytes_before: int
    parameter_bytes_after: int
    details: dict[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        return self.before - self.after

    def figures(self) -> dict[str, Any]:
        """Plain data for records and reports; `text` is one line for people."""
        return {
            "kind": self.kind,
            "quality_before": self.before,
            "quality_after": self.after,
            "quality_floor": self.floor,
            "parameter_bytes_before": self.parameter_bytes_before,
            "parameter_bytes_after": self.parameter_bytes_after,
            "text": self.reason,
            **self.details,
        }


class QualityBudget:
    """Holds candidates against a baseline.

    Args:
        evaluate: metric, higher is better. Its model is in evaluation mode, and must come back with
            the same weights.
        max_loss: see `MaxLoss.of`. Without a metric it bounds the drift: the share of the energy
            of the outputs, ||candidate - baseline||^2 / ||baseline||^2, worst output, over all of
            `data`. The default of 1% is a relative L2 distance of 10%.
        data: calibration batches `(args, kwargs)`; needed when there is no metric.

    Raises:
        QualityError: neither `evaluate` nor `data`, or a meaningless `max_loss`.
    """

    def __init__(
        self,
        evaluate: Evaluate | None = None,
        max_loss: float | str | LossLike = 0.01,
        data: Sequence[Call] | None = None,
    ) -> None:
        if evaluate is None and not data:
            raise QualityError("a quality budget needs a metric (--eval) or batches (--data).")
        self.max_loss = MaxLoss.of(max_loss)
        self._evaluate = evaluate
        self._data: Sequence[Call] = list(data) if data else ()
        self._before: float | None = None
        self._outputs: list[list[torch.Tensor]] = []
        self._bytes = 0

    @property
    def kind(self) -> str:
        return "drift" if self._evaluate is None else "metric"

    def set_baseline(self, model: nn.Module) -> float:
        """Measure the model that all candidates are compared with; its quality."""
        self._bytes = parameter_bytes(model)
        if self._evaluate is None:
            self._outputs = [floating_outputs(model, call) for call in self._data]
            if not any(self._outputs):
                raise QualityError("the model has no floating point output to judge drift by.")
            for tensor in (t for outputs in self._outputs for t in outputs):
                if not bool(torch.isfinite(tensor).all()):
                    raise QualityError(
                        "the baseline gives NaN or Inf on the calibration data; drift from that "
                        "means nothing."
                    )
            self._before = 1.0
        else:
            self._before = guarded(self._evaluate, model)
        return self._before

    def judge(self, candidate: nn.Module) -> Quality:
        """Whether the candidate stays within the budget.

        A metric that raises or is not finite was fine for the baseline, so that speaks against the
        candidate, which is not admissible. Raises QualityError when the metric changes the model.
        """
        if self._before is None:
            raise QualityError("set_baseline must be called before candidates are judged.")
        details: dict[str, float] = {}
        failure = ""
        if self._evaluate is None:
            details = drift(self._outputs, [floating_outputs(candidate, c) for c in self._data])
            after = 1.0 - details["drift"]
        else:
            try:
                after = guarded(self._evaluate, candidate)
            except NoMetricError as error:
                after, failure = math.nan, f": {error}"
        floor = self.max_loss.floor(self._before)
        # Written so that NaN is refused.
        admissible = after >= floor
        name = "fidelity on the calibration data" if self._evaluate is None else "quality"
        reason = (
            f"{name} {self._before:.4g} -> {after:.4g}, "
            f"{'within' if admissible else 'outside'} the allowed loss of {self.max_loss}{failure}"
        )
        return Quality(
            admissible=admissible,
            kind=self.kind,
            before=self._before,
            after=after,
            floor=floor,
            reason=reason,
            parameter_bytes_before=self._bytes,
            parameter_bytes_after=parameter_bytes(candidate),
            details=details,
        )


def guarded(evaluate: Evaluate, model: nn.Module) -> float:
    """`evaluate(model)` in evaluation mode, checked; the mode of the model is restored.

    Raises NoMetricError when it raises or returns no finite number, QualityError when it changes
    parameters or buffers.
    """
    name = getattr(evaluate, "__name__", type(evaluate).__name__)
    training = model.training
    before = state_hash(model)
    raised: Exception | None = None
    model.eval()
    try:
        result = evaluate(model)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        raised = error
    finally:
        model.train(training)
    if state_hash(model) != before:
        raise QualityError(
            f"the evaluation function {name} changed parameters or buffers of the model; "
            "it must only read."
        )
    if raised is not None:
        first = (str(raised).strip() or "no message").splitlines()[0]
        raise NoMetricError(
            f"the evaluation function {name} raised {type(raised).__name__}: {first}"
        ) from raised
    try:
        value = float(result)
    except (TypeError, ValueError, RuntimeError):
        raise NoMetricError(
            f"the evaluation function {name} returned {type(result).__name__}, not a number."
        ) from None
    if not math.isfinite(value):
        raise NoMetricError(f"the evaluation function {name} returned {value}.")
    return value


def state_hash(model: nn.Module) -> str:
    """A digest of names, shapes, dtypes and bytes of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def floating_outputs(model: nn.Module, call: Call) -> list[torch.Tensor]:
    """The floating outputs of a model in evaluation mode, in float64 on the CPU."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            leaves = tensor_leaves(model(*call[0], **call[1]))
    finally:
        model.train(training)
    return [t.detach().double().cpu() for t in leaves if t.is_floating_point()]


def drift(
    reference: Sequence[Sequence[torch.Tensor]], other: Sequence[Sequence[torch.Tensor]]
) -> dict[str, float]:
    """How far outputs moved, for the worst output over all batches.

    Returns `drift` (share of energy), `relative_l2` and `cosine`; NaN where an output is NaN.

    Raises QualityError when number or shape of outputs differ.
    """
    worst = {"drift": 0.0, "relative_l2": 0.0, "cosine": 1.0}
    if any(
        [t.shape for t in a] != [t.shape for t in b] for a, b in zip(reference, other, strict=True)
    ):
        raise QualityError("the candidate's outputs differ in number or shape from the baseline's.")
    for position in range(len(reference[0])):
        error = sum(
            float((b[position] - a[position]).square().sum())
            for a, b in zip(reference, other, strict=True)
        )
        energy = sum(float(a[position].square().sum()) for a in reference)
        other_energy = sum(float(b[position].square().sum()) for b in other)
        product = sum(
            float((a[position] * b[position]).sum()) for a, b in zip(reference, other, strict=True)
        )
        if error == 0.0:
            continue
        share = error / energy if energy else math.inf
        if not share <= worst["drift"]:
            scale = math.sqrt(energy * other_energy)
            worst = {
                "drift": share,
                "relative_l2": math.sqrt(share) if share >= 0 else math.nan,
                "cosine": product / scale if scale else 0.0,
            }
            if math.isnan(share):
                break
    return worst
