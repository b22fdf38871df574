"""The residual network: shapes, training and checkpoint, on made-up images (no download)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.export import Dim, export

from examples import assets, classify, fashion_mnist
from examples.registries import AssetError


def stripes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy images with one bright band, whose height in the image is the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    images = random.integers(0, 60, (count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] += 180
    return images.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> assets.FashionMnist:
    made_up = assets.FashionMnist(*stripes(256, 0), *stripes(120, 1))
    monkeypatch.setattr(fashion_mnist, "_data", lambda: made_up)
    monkeypatch.setenv("ESPER_ASSETS", str(tmp_path / "cache"))
    return made_up


def test_untrained_says_what_to_do(data: assets.FashionMnist) -> None:
    with pytest.raises(AssetError, match=r"run `python examples/fashion_mnist.py train` first"):
        fashion_mnist.factory()


def test_the_checkpoint_is_what_was_trained(
    data: assets.FashionMnist, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = fashion_mnist.train(epochs=2)
    assert "epoch 2/2" in capsys.readouterr().out
    loaded = fashion_mnist.factory()
    assert not loaded.training
    assert [path.name for path in fashion_mnist.checkpoint().parent.iterdir()] == [
        "fashion-mnist-resnet.pt"
    ]
    images = classify.normalise(data.test_images, 0.0, 1.0)
    assert classify.logit_error(loaded, trained, images) == 0.0
    assert loaded.state_dict()["stem.1.num_batches_tracked"] == 2 * (256 // 128)
    assert 0 <= fashion_mnist.evaluate(loaded) == fashion_mnist.evaluate(trained) <= 1


def test_exports_with_dynamic_batch_and_is_judged_alike() -> None:
    module = fashion_mnist.architecture()
    images = torch.randn(classify.BATCH, 1, 28, 28)
    program = export(module, (images,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    more = torch.randn(70, 1, 28, 28)
    assert classify.logits(module, more).shape == (70, 10)
    torch.testing.assert_close(
        classify.logits(program.module(), more), module(more), rtol=1e-4, atol=1e-5
    )


def test_accuracy_counts_the_last_partial_batch() -> None:
    images = torch.arange(70.0)[:, None, None, None].expand(-1, 1, 2, 2)

    def perfect_for_small(batch: torch.Tensor) -> torch.Tensor:
        assert len(batch) == classify.BATCH
        return torch.nn.functional.one_hot((batch[:, 0, 0, 0] >= 63).long(), 2)

    labels = np.zeros(70, dtype=np.int64)
    assert classify.accuracy(perfect_for_small, images, labels) == pytest.approx(63 / 70)


def test_augmentation_mirrors_some_images() -> None:
    torch.manual_seed(0)
    images = classify.normalise(stripes(20, 2)[0], 0.2860, 0.3530)
    for _ in range(5):
        changed = fashion_mnist.augment(images)
        assert changed.shape == images.shape
        mirrored = [not torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
        assert 0 < sum(mirrored) < len(images)
        assert torch.equal(changed[mirrored], images[mirrored].flip(3))
