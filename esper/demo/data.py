"""Real data that is already on this machine: nothing is fetched.

Images: the 1,797 handwritten digits that scikit-learn ships (Alpaydin and Kaynak 1998, 8x8 pixels,
CC BY 4.0), or a directory with the four IDX files of Fashion-MNIST. Text: the language reference
that ships with the running Python as `pydoc_data.topics` (PSF licence).
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from esper.errors import InputError, UsageError

_SPLITS = (0.55, 0.2)  # for training, for probes; the rest tests
_IDX = {0x08: np.dtype(np.uint8)}
_POOL = 2  # Fashion-MNIST is halved to 14x14, so that a run takes seconds
_MOST = 8000  # images that are used of a larger set


@dataclass(frozen=True)
class Data:
    """Three disjoint parts, each inputs and labels of equal length.

    Attributes:
        name: for pages.
        train, probe, test: for training, for probes at boundaries, and for the final figures.
        classes: how many labels there are.
    """

    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    probe: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    classes: int

    def batch(self, generator: torch.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A training batch drawn with replacement."""
        inputs, labels = self.train
        chosen = torch.randint(len(inputs), (size,), generator=generator)
        return inputs[chosen], labels[chosen]


def images(folder: str = "") -> Data:
    """Images [N, 1, H, W], standardised, with their classes.

    Args:
        folder: with Fashion-MNIST's IDX files, gzipped or not; "" takes scikit-learn's digits.

    Raises:
        UsageError: there are no digits here.
        InputError: the folder does not hold the files.
    """
    return _fashion(Path(folder)) if folder else _digits()


def text(length: int = 32) -> Data:
    """Windows of characters [N, length] as numbers, each with the characters that follow.

    Raises:
        UsageError: this Python came without its language reference.
    """
    return _text(length)


@cache
def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the demos on images need data: pip install 'esper-opt[demo]' brings scikit-learn's "
            "digits, or give --data DIR with the IDX files of Fashion-MNIST"
        ) from error
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return _split("scikit-learn digits", pixels, torch.tensor(found.target, dtype=torch.int64))


@cache
def _fashion(folder: Path) -> Data:
    pixels, labels = (
        _idx(folder, f"train-{name}")[:_MOST] for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    whole = torch.from_numpy(pixels).float().unsqueeze(1)
    small = torch.nn.functional.avg_pool2d(whole, _POOL)
    return _split("Fashion-MNIST", small, torch.from_numpy(labels).long())


@cache
def _text(length: int) -> Data:
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise UsageError(
            "the demos on text read Python's language reference (pydoc_data), which this Python "
            "came without: use one that has its whole standard library"
        ) from error
    written = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    known = "".join(sorted({c for c in written if c.isascii() and (c.isprintable() or c == "\n")}))
    numbers = {c: i for i, c in enumerate(known)}
    codes = torch.tensor([numbers[c] for c in written if c in numbers])
    windows = codes[: (len(codes) - 1) // length * length + 1]
    inputs, labels = windows[:-1].view(-1, length), windows[1:].view(-1, length)
    return _split("Python's language reference", inputs, labels, classes=len(known))


def _split(
    name: str, inputs: torch.Tensor, labels: torch.Tensor, classes: int | None = None
) -> Data:
    """The same shuffle for everyone, then three parts."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, labels = inputs[order], labels[order]
    ends = [math.floor(len(inputs) * sum(_SPLITS[: i + 1])) for i in range(len(_SPLITS))]
    if inputs.is_floating_point():
        inputs = (inputs - inputs[: ends[0]].mean()) / inputs[: ends[0]].std()
    parts = zip(torch.tensor_split(inputs, ends), torch.tensor_split(labels, ends), strict=True)
    train, probe, test = parts
    return Data(name, train, probe, test, classes or int(labels.max()) + 1)


def _idx(folder: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One file of LeCun's IDX format: magic, sizes, bytes."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except OSError as error:
        raise InputError(f"{folder} holds neither {name} nor {name}.gz") from error
    if len(data) < 4 or data[2] not in _IDX:
        raise InputError(f"{folder / name} is no IDX file of bytes")
    start = 4 + 4 * data[3]
    sizes = np.frombuffer(data, ">i4", data[3], 4)
    if len(data) - start != int(sizes.prod()):
        raise InputError(f"{folder / name} is cut off")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sizes).copy()
