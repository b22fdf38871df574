"""State transforms: how named tensors, and everything that shadows them, follow a plan.

A `StateTransform` maps a tensor name to operations. The same operations move the weight, its
gradient, optimizer moments and averaged copies, because all of them have the weight's shape:
called, an operation moves the weight; `shadow` moves what only follows it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
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

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """What follows the weight loses the same positions."""
        return self(tensor)

    def text(self) -> str:
        """Deterministic text, for hashing and printing."""
        return f"select dim={self.dim} keep={len(self.index)} {_digest_ints(self.index)}"


@dataclass(frozen=True)
class Grow:
    """New positions along one dimension.

    Attributes:
        dim: the dimension that grows.
        places: where each old position goes, ascending; the other places are new.
        fill: values of the new places in their order; along other dimensions it has the size
            that the tensor has when the operation is applied.
        sources: the old position that each new place was copied from, where it was.
    """

    dim: int
    places: tuple[int, ...]
    fill: torch.Tensor
    sources: tuple[int, ...] | None = None

    def _new(self) -> list[int]:
        taken = set(self.places)
        total = len(taken) + self.fill.shape[self.dim]
        return [place for place in range(total) if place not in taken]

    def spread(self, tensor: torch.Tensor, fill: torch.Tensor | None) -> torch.Tensor:
        """Old positions at their places and `fill` (or zeros) between them."""
        shape = list(tensor.shape)
        shape[self.dim] = len(self.places) + self.fill.shape[self.dim]
        result = tensor.new_zeros(shape)
        old = torch.tensor(self.places, dtype=torch.int64, device=tensor.device)
        result.index_copy_(self.dim, old, tensor)
        if fill is not None:
            new = torch.tensor(self._new(), dtype=torch.int64, device=tensor.device)
            result.index_copy_(self.dim, new, fill.to(result))
        return result

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.spread(tensor, self.fill)

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """New positions have no past: zeros."""
        return self.spread(tensor, None)

    def text(self) -> str:
        """Deterministic text."""
        shape = tuple(self.fill.shape)
        return f"grow dim={self.dim} new={self._new()} {shape} {digest(self.fill)}"


@dataclass(frozen=True)
class Patch:
    """New values at some positions along one dimension; what follows the weight stays.

    `values` holds one slice for each position, in order.
    """

    dim: int
    positions: tuple[int, ...]
    values: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        index = torch.tensor(self.positions, dtype=torch.int64, device=tensor.device)
        return tensor.clone().index_copy_(self.dim, index, self.values.to(tensor))

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """Moments, gradients and averages of the position stay."""
        return tensor

    def text(self) -> str:
        """Deterministic text."""
        return f"patch dim={self.dim} at={list(self.positions)} {digest(self.values)}"


@dataclass(frozen=True)
class Replace:
    """Take a new value; moments of the old value no longer mean anything and restart at zero."""

    value: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.value.to(device=tensor.device)

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """What followed the old value starts again at zero."""
        return tensor.new_zeros(self.value.shape)

    def text(self) -> str:
        """Deterministic text."""
        return f"replace {self.value.dtype}{tuple(self.value.shape)} {digest(self.value)}"


@dataclass(frozen=True)
class Forget:
    """What follows the weight starts again at zero in marked entries; with `values` the weight too.

    `at` is a bool tensor of the weight's shape.
    """

    at: torch.Tensor
    values: bool = False

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.shadow(tensor) if self.values else tensor

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """Marked entries are zero; NaN too, so this is no multiplication."""
        return torch.where(self.at.to(tensor.device), torch.zeros_like(tensor), tensor)

    def text(self) -> str:
        """Deterministic text."""
        return f"forget {int(self.at.sum())} values={self.values} {digest(self.at)}"


@dataclass(frozen=True)
class Rearrange:
    """Elements at other places, in another shape perhaps; nothing is computed.

    Attributes:
        source: int64, of the new shape: the position in the flattened old tensor from which each
            element comes, -1 for a zero.
        dims: the old dim that each new dim is; None for one whose positions mean something else.
    """

    source: torch.Tensor
    dims: tuple[int | None, ...]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        source = self.source.to(tensor.device)
        if not tensor.numel():
            return tensor.new_zeros(source.shape)
        taken = tensor.flatten()[source.clamp_min(0)]
        return torch.where(source >= 0, taken, torch.zeros_like(taken))

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """What follows the weight goes to the same places."""
        return self(tensor)

    def inverse(self, shape: tuple[int, ...]) -> Rearrange:
        """Back to the old shape, with zeros where nothing was taken from.

        Raises:
            ValueError: an element went to two places, so that there is no one way back.
        """
        flat = self.source.flatten()
        new = torch.nonzero(flat >= 0).flatten()
        old = flat[new]
        if len(torch.unique(old)) < len(old):
            raise ValueError("an element went to two places, of which none is the one to go back")
        back = torch.full((math.prod(shape),), -1, dtype=torch.int64)
        back[old] = new
        dims = tuple(self.dims.index(d) if d in self.dims else None for d in range(len(shape)))
        return Rearrange(back.reshape(shape), dims)

    def text(self) -> str:
        """Deterministic text."""
        return f"rearrange {tuple(self.source.shape)} dims={self.dims} {digest(self.source)}"


@dataclass(frozen=True)
class Train:
    """A parameter trains, or does not, from now on; its value and its past stay."""

    trains: bool

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def shadow(self, tensor: torch.Tensor) -> torch.Tensor:
        """Moments and averages stay; a gradient goes where nothing trains."""
        return tensor

    def text(self) -> str:
        """Deterministic text."""
        return "train" if self.trains else "freeze"


@dataclass(frozen=True)
class Join:
    """Take other tensors behind itself along the first dim; the plan drops those.

    Attributes:
        others: their names, in order.
    """

    others: tuple[str, ...]

    def of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """All of them as one, the tensor itself first."""
        return torch.cat(list(tensors))

    def text(self) -> str:
        """Deterministic text."""
        return f"join {', '.join(self.others)}"


@dataclass(frozen=True)
class Part:
    """A tensor that did not exist: positions of another along the first dim, and their past.

    Attributes:
        source: name of the other, which a plan changes after this.
        start, stop: the positions.
    """

    source: str
    start: int
    stop: int

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.start : self.stop].clone()

    def text(self) -> str:
        """Deterministic text."""
        return f"part {self.source} {self.start}:{self.stop}"


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


# Operations on a tensor that stays.
Move = Select | Grow | Patch | Replace | Forget | Rearrange | Train
Op = Move | Join | Part | Create | Drop


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
