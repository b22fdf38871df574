"""Data of the storyboards: what is here is used, and what is not is said in one sentence."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.demo import data
from esper.errors import InputError, UsageError


def test_digits_are_three_disjoint_parts() -> None:
    found = data.images()
    sizes = [len(part[0]) for part in (found.train, found.probe, found.test)]
    assert sum(sizes) == 1797
    assert found.train[0].shape[1:] == (1, 8, 8)
    assert found.classes == 10
    assert abs(float(found.train[0].mean())) < 1e-4
    inputs, labels = found.batch(torch.Generator().manual_seed(0), 16)
    assert inputs.shape == (16, 1, 8, 8)
    assert labels.shape == (16,)


def test_text_windows_are_followed_by_what_comes_next() -> None:
    found = data.text(16)
    inputs, labels = found.train
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    assert int(inputs.max()) < found.classes <= 128
    assert len(inputs) > 10_000


def test_without_its_package_the_digits_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    data._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"esper-opt\[demo\].*--data DIR"):
        data.images()


def test_without_the_standard_library_the_text_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data._text.cache_clear()
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(UsageError, match="whole standard library"):
        data.text(8)


# -- IDX files -------------------------------------------------------------------------------------


def _idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    head = bytes([0, 0, 8, values.ndim])
    return head + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (40, 28, 28), np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(pixels)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    return tmp_path


def test_fashion_mnist_is_read_gzipped_or_not_and_halved(folder: Path) -> None:
    found = data.images(str(folder))
    assert found.name == "Fashion-MNIST"
    assert found.train[0].shape == (22, 1, 14, 14)
    assert len(found.train[0]) + len(found.probe[0]) + len(found.test[0]) == 40


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "neither"), (b"\0\0\x08", "no IDX file"), (b"\0\0\x08\1\0\0\0\x28ab", "cut off")],
)
def test_what_is_no_such_folder(folder: Path, content: bytes | None, said: str) -> None:
    path = folder / "train-labels-idx1-ubyte"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    data._fashion.cache_clear()
    with pytest.raises(InputError, match=said):
        data.images(str(folder))
