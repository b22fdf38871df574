"""Layouts derived from weights, kept beside them while they live and are not written to.

A weight is recognised by identity, address and version counter, so that every in-place update that
autograd would notice makes a new layout. Writing through `.data` or NumPy is not noticed by either,
which is why weights that train have no kept layout at all. Tensors keep no trace of it: copies,
state dicts and exported programs hold the weight alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, UntypedStorage

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    weight: weakref.ref[Tensor]
    state: tuple[int, ...]
    memory: UntypedStorage  # held, so that no other data comes to lie at its address
    layout: T


class Prepacked(Generic[T]):
    """`build(weight, *sizes)`, remembered for each weight.

    Attributes:
        build: makes the layout; must not return a view of the weight.
    """

    def __init__(self, build: Callable[..., T]) -> None:
        self.build = build
        self._kept: dict[int, _Entry[T]] = {}

    def __call__(self, weight: Tensor, *sizes: int) -> T:
        """The layout of the weight as it is now."""
        state = (weight._version, weight.data_ptr(), *sizes)
        name = id(weight)
        entry = self._kept.get(name)
        # Another weight may have the number of one that is gone: the reference tells.
        if entry is not None and entry.state == state and entry.weight() is weight:
            return entry.layout
        layout = self.build(weight, *sizes)
        reference = weakref.ref(weight, lambda gone: self._forget(name, gone))
        self._kept[name] = _Entry(reference, state, weight.untyped_storage(), layout)
        return layout

    def _forget(self, name: int, gone: weakref.ref[Tensor]) -> None:
        entry = self._kept.get(name)
        if entry is not None and entry.weight is gone:
            del self._kept[name]

    def __len__(self) -> int:
        """Number of weights with a layout."""
        return len(self._kept)


def keeps(weight: Tensor) -> bool:
    """Whether a weight may have a kept layout: it does not train, and writes to it are counted."""
    return not (weight.requires_grad or weight.is_inference()) and weight.is_contiguous()
