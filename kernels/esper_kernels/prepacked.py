"""Layouts derived from weights, kept beside them while they live and are not written to.

A weight is recognised by identity, address and version counter, so that every in-place update that
autograd would notice makes a new layout. Writing through `.data` or NumPy is not noticed by either,
which is why weights that train have no kept layout at all. Tensors keep no trace of it: copies,
state dicts and exported programs hold the weight alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")
Key = tuple[int, ...]


class Prepacked(Generic[T]):
    """`build(weight, *sizes)`, remembered for each weight.

    Attributes:
        build: makes the layout; must not return a view of the weight.
    """

    def __init__(self, build: Callable[..., T]) -> None:
        self.build = build
        self._kept: MutableMapping[Tensor, tuple[Key, T]] = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, weight: Tensor, *sizes: int) -> T:
        """The layout of the weight as it is now."""
        key: Key = (weight._version, weight.data_ptr(), *sizes)
        with self._lock:
            found = self._kept.get(weight)
        if found is not None and found[0] == key:
            return found[1]
        layout = self.build(weight, *sizes)
        with self._lock:
            self._kept[weight] = (key, layout)
        return layout

    def __len__(self) -> int:
        """Number of weights with a layout."""
        return len(self._kept)


def keeps(weight: Tensor) -> bool:
    """Whether a weight may have a kept layout: it does not train, and writes to it are counted."""
    return not (weight.requires_grad or weight.is_inference()) and weight.is_contiguous()
