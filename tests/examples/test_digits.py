"""The digit classifiers give their published accuracy, and the metric notices damage."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from esper.errors import InputError
from examples import assets, classify, digits


@pytest.mark.parametrize(
    ("factory", "published"),
    [(digits.digit_recognizer_factory, 0.9970), (digits.ccexam_factory, 0.9986)],
)
def test_published_accuracy(factory: Callable[[], nn.Module], published: float) -> None:
    module = factory()
    assert not module.training
    assert digits.evaluate_all(module) == pytest.approx(published, abs=3e-4)


def test_calibration_digits_are_not_evaluated() -> None:
    seen: list[torch.Tensor] = []

    def spy(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 10)

    digits.evaluate(spy)
    judged = {image.numpy().tobytes() for batch in seen for image in batch}
    calls = digits.calibration()
    assert len(calls) == 10
    for (images,), _ in calls:
        assert images.shape == (classify.BATCH, 1, 28, 28)
        assert not any(image.numpy().tobytes() in judged for image in images)
    assert all(len(batch) == classify.BATCH for batch in seen)


def test_logit_error_and_nan() -> None:
    module = digits.ccexam_factory()
    ((images,), _) = digits.inputs()
    assert classify.logit_error(module, module, images) == 0.0
    other = digits.ccexam_factory()
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    assert 0 < classify.logit_error(other, module, images) < 0.1
    with torch.no_grad():
        next(other.parameters()).fill_(math.nan)
    assert math.isnan(digits.evaluate(other))


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(InputError, match=r"svhn\.pth does not hold the tensors of DigitNet"):
        digits.load(digits.ccexam_architecture(), assets.ccexam_weights("svhn"))
