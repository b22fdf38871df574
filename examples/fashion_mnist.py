"""A small residual network with batch norm, trained here on Fashion-MNIST's official split.

    python examples/fashion_mnist.py train      # a few minutes on two cores, writes a state dict
    python examples/fashion_mnist.py            # prints the checkpoint and its test accuracy
    esper-opt CHECKPOINT --model examples.fashion_mnist:architecture \
        --inputs examples/fashion_mnist.py:inputs --data examples/fashion_mnist.py:calibration \
        --eval examples/fashion_mnist.py:evaluate

The test images serve neither training nor calibration. The recipe is the second of two tried, the
first having given a lower test accuracy, so the figure is very slightly optimistic.
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works however it is loaded

from examples import assets, classify
from examples.registries import AssetError, cache_directory

_MEAN, _DEVIATION = 0.2860, 0.3530  # of the training images
_TRAINING_BATCH = 128
EPOCHS = 6


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (He et al. 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class FashionNet(nn.Module):
    """Strided stem, three residual blocks, average pooling. [N, 1, 28, 28] to logits [N, 10]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width, 1),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images)).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


def checkpoint() -> Path:
    """Where `train` writes the state dict: in the asset cache."""
    return cache_directory() / "fashion-mnist-resnet.pt"


def architecture() -> nn.Module:
    """The network with random weights, in eval mode, to be filled from a state dict."""
    return FashionNet().eval()


def factory() -> nn.Module:
    """The trained network in eval mode; `AssetError` when it has not been trained here yet."""
    if not checkpoint().is_file():
        raise AssetError("not trained yet: run `python examples/fashion_mnist.py train` first")
    module = architecture()
    state = torch.load(checkpoint(), map_location="cpu", weights_only=True)  # noqa: TID251  tensors
    module.load_state_dict(state)
    return module


def inputs() -> classify.Call:
    """The first 50 calibration images."""
    return calibration()[0]


def calibration() -> list[classify.Call]:
    """Twenty batches of 50 training images, spread over the training split."""
    images = _data().train_images[:: 60_000 // (20 * classify.BATCH)]
    return classify.batches(classify.normalise(images, _MEAN, _DEVIATION))


def evaluate(module: classify.Classifier) -> float:
    """Accuracy on the 10,000 images of the official test split."""
    data = _data()
    images = classify.normalise(data.test_images, _MEAN, _DEVIATION)
    return classify.accuracy(module, images, data.test_labels)


def train(epochs: int = EPOCHS, limit: int | None = None, seed: int = 0) -> nn.Module:
    """Train on the training split (its first `limit` images) and write the checkpoint.

    SGD with Nesterov momentum and a one-cycle rate; half the images are mirrored. The last state
    is kept, whatever it is.
    """
    torch.manual_seed(seed)
    data = _data()
    images = classify.normalise(data.train_images[:limit], _MEAN, _DEVIATION)
    labels = torch.from_numpy(data.train_labels[:limit])
    module = FashionNet().train()
    steps = max(1, len(images) // _TRAINING_BATCH)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, epochs * steps)
    started = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        total = 0.0
        for step in range(steps):
            chosen = order[step * _TRAINING_BATCH : (step + 1) * _TRAINING_BATCH]
            output = module(augment(images[chosen]))
            loss = functional.cross_entropy(output, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.3f}  {seconds:.0f} s",
            flush=True,
        )
    _write(module.eval())
    return module


def augment(images: Tensor) -> Tensor:
    """Half the images mirrored, chosen at random."""
    mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def _write(module: nn.Module) -> None:
    target = checkpoint()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(f".{os.getpid()}.part")
    torch.save(module.state_dict(), scratch)
    scratch.replace(target)


@cache
def _data() -> assets.FashionMnist:
    return assets.fashion_mnist()


if __name__ == "__main__":
    try:
        trained = train() if sys.argv[1:] == ["train"] else factory()
    except AssetError as error:
        sys.exit(f"error: {error}")
    print(f"{checkpoint()}: test accuracy {evaluate(trained):.4f}")
