"""Random weights with the form of real ones: their sizes, dtype, runs and integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels.run_sparse import unpack

if TYPE_CHECKING:
    from esper_passes.lowerable import Lowerable


@dataclass(frozen=True)
class RandomWeight:
    """One weight, packed and not.

    Attributes:
        stored: (outputs, inputs) as the layer stores it now, floating or int8.
        values, scale, index: as a kernel reads it.
        bias: of the layer.
    """

    stored: Tensor
    values: Tensor
    scale: Tensor | None
    index: Tensor | None
    bias: Tensor | None

    @classmethod
    def like(cls, layer: Lowerable, index: Tensor | None, rows: int, run: int) -> RandomWeight:
        """A weight with the sizes of a layer's, which keeps the runs in `index`, if given."""
        value = layer.x.meta["val"]
        new: Any = {"dtype": value.dtype, "device": value.device}
        outputs, inputs = layer.size
        width = inputs if index is None else index.shape[1] * run
        bias = None if layer.bias is None else torch.randn(outputs, **new)
        values, scale = torch.randn(outputs, width, **new), None
        if layer.scale is not None:
            values = torch.randint(-127, 128, values.shape, device=value.device, dtype=torch.int8)
            scale = torch.rand(outputs, device=value.device).add_(0.5).div_(127)
        stored = values
        if index is not None:
            index = index.to(value.device)
            stored = unpack(values, index, rows, run, inputs)
        return cls(stored, values, scale, index, bias)

    def dense(self, x: Tensor) -> Tensor:
        """The layer as a graph holds it now."""
        weight = self.stored
        if self.scale is not None:
            weight = weight * self.scale[:, None].to(x.dtype)
        return functional.linear(x, weight, self.bias)

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """What has a gradient in the dense layer."""
        return _floating(self.stored, self.bias)

    @property
    def trained_packed(self) -> tuple[Tensor, ...]:
        """What has a gradient where the weight is packed."""
        return _floating(self.values, self.bias)


def _floating(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None and t.is_floating_point())
