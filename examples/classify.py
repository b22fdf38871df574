"""Accuracy of an image classifier over labelled images, in batches of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 50

Classifier = Callable[..., Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def normalise(images: NDArray[np.uint8], mean: float, deviation: float) -> Tensor:
    """Images [N, H, W] of 0 to 255 as float32 [N, 1, H, W] with the statistics given."""
    return (torch.from_numpy(images).to(torch.float32)[:, None] / 255 - mean) / deviation


def batches(images: Tensor) -> list[Call]:
    """The images as calls of `BATCH`; a remainder is dropped."""
    return [((images[i : i + BATCH],), {}) for i in range(0, len(images) - BATCH + 1, BATCH)]


def logits(module: Classifier, images: Tensor) -> Tensor:
    """Float32 logits [N, classes] on the CPU.

    Every call has `BATCH` rows, the last one filled up with zeros, so that a graph whose batch
    size is fixed at that of `inputs()` can be judged too.
    """
    device = torch.device("cpu")
    if isinstance(module, nn.Module):
        device = next((p.device for p in module.parameters()), device)
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            filled = torch.cat([part, part.new_zeros(BATCH - len(part), *part.shape[1:])])
            output: Tensor = module(filled.to(device))
            parts.append(output[: len(part)].to("cpu", torch.float32))
    return torch.cat(parts)


def accuracy(module: Classifier, images: Tensor, labels: NDArray[np.int64]) -> float:
    """Share of images whose largest logit is at the label; NaN when any logit is not finite."""
    scores = logits(module, images)
    if not bool(torch.isfinite(scores).all()):
        return float("nan")
    return float((scores.argmax(1) == torch.from_numpy(labels)).to(torch.float64).mean())


def logit_error(module: Classifier, reference: Classifier, images: Tensor) -> float:
    """Relative error of the logits, norm of the difference over norm of the reference's.

    Tells apart two modules that accuracy cannot, where accuracy is close to 1.
    """
    wanted = logits(reference, images)
    return float((logits(module, images) - wanted).norm() / wanted.norm())
