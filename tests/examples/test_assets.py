"""The assets themselves (these fetch what is not in the cache yet) and their readers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from examples import assets
from examples.registries import AssetError


def test_word_pairs_and_documents() -> None:
    assert len(assets.wordsim353()) == 353
    assert len(assets.simlex999()) == 999
    for _, _, score in assets.wordsim353() + assets.simlex999():
        assert 0 <= score <= 10
    documents, similarity = assets.lee()
    assert len(documents) == 50
    assert similarity.shape == (50, 50)
    np.testing.assert_array_equal(np.diag(similarity), 1)


def test_calibration_text_shares_no_document_with_the_evaluation() -> None:
    judged = {text.strip() for text in assets.lee()[0]}
    background = assets.calibration_text()
    assert len(background) == 300
    assert not judged & {text.strip() for text in background}
    assert len(assets.calibration_text("head500")) == 250


def test_digits() -> None:
    images, labels = assets.digits()
    assert images.shape == (5000, 28, 28)
    assert images.max() == 255
    np.testing.assert_array_equal(np.bincount(labels), [500] * 10)


def test_minilm_directory_holds_a_hugging_face_model() -> None:
    config = json.loads((assets.minilm() / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (6, 384)
    assert (assets.minilm() / "model.safetensors").is_file()


def write_idx(path: Path, header: bytes, body: bytes) -> Path:
    with gzip.open(path, "wb") as stream:
        stream.write(header + body)
    return path


def test_idx_reader(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    array = assets.read_idx(write_idx(tmp_path / "a.gz", header, bytes(range(6))))
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    assert array.flags.writeable
    with pytest.raises(AssetError, match="holds 5 bytes"):
        assets.read_idx(write_idx(tmp_path / "b.gz", header, bytes(range(5))))
    with pytest.raises(AssetError, match="not an IDX file"):
        assets.read_idx(write_idx(tmp_path / "c.gz", b"\0\0\x0d\x01", bytes(8)))
