"""State transforms: how named tensors, and everything that shadows them, follow a plan.

A `StateTransform` maps a tensor name to operations. The same operations move the weight, its
gradient, optimizer moments and averaged copies, because all of them have the weight's shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Select:
    """Keep these positions along one dimension."""

    dim: int
    index: tuple[int, ...]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        index = torch.tensor(self.index, dtype=torch.int64, device=tensor.device)
        return tensor.index_select(self.dim, index)

    def text(self) -> str:
        """Deterministic text, for hashing and printing."""
        return f"select dim={self.dim} keep={len(self.index)} {_digest_ints(self.index)}"


@dataclass(frozen=True)
class Replace:
    """Take a new value; moments of the old value no longer mean anything and restart at zero."""

    value: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.value.to(device=tensor.device)

    def text(self) -> str:
        """Deterministic text."""
        return f"replace {self.value.dtype}{tuple(self.value.shape)} {digest(self.value)}"


@dataclass(frozen=True)
class Create:
    """A tensor that did not exist."""

    value: torch.Tensor
    trainable: bool

    def text(self) -> str:
        """Deterministic text."""
        kind = "parameter" if self.trainable else "buffer"
        return f"create {kind} {self.value.dtype}{tuple(self.value.shape)} {digest(self.value)}"


@dataclass(frozen=True)
class Drop:
    """The tensor goes."""

    def text(self) -> str:
        """Deterministic text."""
        return "drop"


Op = Select | Replace | Create | Drop


@dataclass(frozen=True)
class StateTransform:
    """Operations by tensor name, applied in order."""

    ops: Mapping[str, tuple[Op, ...]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Deterministic text, one line an operation, sorted by tensor name."""
        return [f"{name}: {op.text()}" for name in sorted(self.ops) for op in self.ops[name]]


def digest(tensor: torch.Tensor) -> str:
    """Short content hash of a tensor."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _digest_ints(values: tuple[int, ...]) -> str:
    data = np.asarray(values, dtype=np.int64).tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()
