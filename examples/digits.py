"""Two small pretrained digit classifiers, judged on 5,000 MNIST digits.

    esper-opt WEIGHTS --model examples.digits:digit_recognizer_architecture \
        --inputs examples/digits.py:inputs --data examples/digits.py:calibration \
        --eval examples/digits.py:evaluate

`python examples/digits.py` prints where the weights are and the unmodified figures. Over all 5,000
digits they are published as 0.9970 (digit-recognizer-py) and 0.9986 (ccexam). The digits are
probably among the training images, so these figures say how much a rewrite loses and nothing about
generalisation; `logit_error` shows what accuracy this close to 1 hides.

Every tenth digit serves for calibration; `evaluate` uses the other 4,500.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works however it is loaded

from esper.errors import InputError
from examples import assets, classify

_MEAN, _DEVIATION = (
    0.1307,
    0.3081,
)  # of MNIST's training images, as both models were trained


class DigitNet(nn.Module):
    """3x3 convolutions, each with ReLU and halved resolution, then one hidden layer.

    Takes [N, 1, 28, 28], gives logits [N, 10]. Odd resolutions are halved downwards. `names` are
    those of the two parts, as the state dict has them.
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, names: tuple[str, str]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for width_in, width in zip((1, *widths), widths, strict=False):
            stages += [
                nn.Conv2d(width_in, width, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        side = 28 // 2 ** len(widths)
        self.add_module(names[0], nn.Sequential(*stages))
        flat = nn.Linear(widths[-1] * side * side, hidden)
        self.add_module(names[1], nn.Sequential(flat, nn.ReLU(), nn.Linear(hidden, 10)))

    def forward(self, images: Tensor) -> Tensor:
        features, classifier = self.children()
        logits: Tensor = classifier(torch.flatten(features(images), 1))
        return logits


def digit_recognizer_architecture() -> nn.Module:
    """digit-recognizer-py: 3 convolutions of 32, 64, 128, hidden layer of 256; 390k parameters."""
    return DigitNet((32, 64, 128), 256, ("conv_layers", "fc_layers")).eval()


def ccexam_architecture() -> nn.Module:
    """ccexam's MNIST model: 2 convolutions of 32 and 64, hidden layer of 128; 422k parameters."""
    return DigitNet((32, 64), 128, ("features", "classifier")).eval()


def digit_recognizer_factory() -> nn.Module:
    """`digit_recognizer_architecture` with its published weights."""
    return load(digit_recognizer_architecture(), assets.digit_recognizer_weights())


def ccexam_factory() -> nn.Module:
    """`ccexam_architecture` with its published weights."""
    return load(ccexam_architecture(), assets.ccexam_weights("mnist"))


def load(module: nn.Module, path: Path) -> nn.Module:
    """Fill `module` from a state dict; eval mode. Raises `InputError` when it does not fit."""
    state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  tensors only
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        name = type(module).__name__
        raise InputError(f"{path.name} does not hold the tensors of {name}") from error
    return module.eval()


def inputs() -> classify.Call:
    """The first 50 calibration digits."""
    return calibration()[0]


def calibration() -> list[classify.Call]:
    """Ten batches of 50 digits, 50 of each class in all, none of which `evaluate` uses."""
    images, _ = _digits()
    chosen = images[::10]
    shuffled = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
    return classify.batches(chosen[shuffled])


def evaluate(module: classify.Classifier) -> float:
    """Accuracy on the 4,500 digits that `calibration` leaves."""
    images, labels = _digits()
    kept = np.arange(len(labels)) % 10 != 0
    return classify.accuracy(module, images[torch.from_numpy(kept)], labels[kept])


def evaluate_all(module: classify.Classifier) -> float:
    """Accuracy on all 5,000 digits, as published."""
    images, labels = _digits()
    return classify.accuracy(module, images, labels)


@cache
def _digits() -> tuple[Tensor, NDArray[np.int64]]:
    images, labels = assets.digits()
    return classify.normalise(images, _MEAN, _DEVIATION), labels


if __name__ == "__main__":
    for factory in (digit_recognizer_factory, ccexam_factory):
        print(
            f"{factory.__name__}: {evaluate_all(factory()):.4f} of all 5,000 digits",
            end=", ",
        )
        print(f"{evaluate(factory()):.4f} of the 4,500 not used for calibration")
