"""Does a converted model still compute what the original does?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from esper.errors import BackendError
from esper.gate.backends.base import Call, Runner, tensor_leaves

TOLERANCE = 2e-2
"""Relative L2 distance allowed between a conversion and eager PyTorch. It has to admit bf16 and
fp16 models (about 8e-3 per rounding); a wrong conversion is off by the order of 1."""


def check_fidelity(name: str, model: nn.Module, runner: Runner, calls: Sequence[Call]) -> float:
    """The largest relative L2 distance between outputs of `runner` and of `model` in eager mode.

    Raises BackendError when the runner fails, or when its outputs differ in number, in shape, or
    by more than `TOLERANCE`.
    """
    worst = 0.0
    for position, call in enumerate(calls):
        want = reference_outputs(model, call)
        try:
            with torch.inference_mode():
                got = [t.detach() for t in tensor_leaves(runner(*call[0], **call[1]))]
        except BackendError:
            raise
        except Exception as error:  # a backend may raise anything
            first = (str(error).strip() or "no message").splitlines()[0]
            raise BackendError(
                f"{name} cannot run the model on input {position}: {type(error).__name__}: {first}"
            ) from error
        if len(want) != len(got):
            raise BackendError(f"{name} returns {len(got)} outputs where PyTorch has {len(want)}.")
        for index, (a, b) in enumerate(zip(want, got, strict=True)):
            drift = relative_distance(a, b)
            if not drift <= TOLERANCE:
                raise BackendError(
                    f"{name} differs from PyTorch on input {position}, output {index}: relative "
                    f"L2 distance {drift:.2g}, allowed {TOLERANCE:g}."
                )
            worst = max(worst, drift)
    return worst


def reference_outputs(model: nn.Module, call: Call) -> list[torch.Tensor]:
    """Outputs of the model in evaluation mode, its mode restored after."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return [t.detach().clone() for t in tensor_leaves(model(*call[0], **call[1]))]
    finally:
        model.train(training)


def relative_distance(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Relative L2 distance; infinite when shapes differ, NaN when a value is NaN."""
    if reference.shape != other.shape:
        return float("inf")
    a, b = reference.double().cpu(), other.double().cpu()
    return float((a - b).norm()) / (float(a.norm()) or 1.0)
