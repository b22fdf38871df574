"""Random weights with the form of real ones: their sizes, dtype, kept entries and integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_passes.integer_layer import integer_linear
from esper_passes.kept import Runs
from esper_passes.kernel_ops import ops as kernels

if TYPE_CHECKING:
    from esper_passes.kept import Kept
    from esper_passes.lowerable import Lowerable


@dataclass(frozen=True)
class RandomWeight:
    """One weight, packed and not.

    Attributes:
        stored: (outputs, inputs) as the layer stores it now, floating or int8.
        values, scale, index: as a kernel reads it.
        bias: of the layer.
        kept: what is in `values`; None for all.
        rounding: whether x is rounded and integers are multiplied.
    """

    stored: Tensor
    values: Tensor
    scale: Tensor | None
    index: Tensor | None
    bias: Tensor | None
    kept: Kept | None
    rounding: bool = False

    @classmethod
    def like(cls, layer: Lowerable, kept: Kept | None) -> RandomWeight:
        """A weight with the sizes of a layer's, of which as much is kept."""
        value = layer.x.meta["val"]
        new: Any = {"dtype": value.dtype, "device": value.device}
        outputs, inputs = layer.size
        bias = None if layer.bias is None else torch.randn(outputs, **new)
        stored, scale, index = torch.randn(outputs, inputs, **new), None, None
        if layer.scale is not None:
            stored = torch.randint(-127, 128, stored.shape, device=value.device, dtype=torch.int8)
            scale = torch.rand(outputs, device=value.device).add_(0.5).div_(127)
        values = stored
        if kept is not None:
            move = kept.move(layer.size, turned=False)
            values = move(stored)
            stored = move.inverse(layer.size)(values)
            index = kept.index.to(value.device)
        return cls(stored, values, scale, index, bias, kept, bool(layer.rounding))

    def dense(self, x: Tensor) -> Tensor:
        """The layer as a graph holds it now."""
        weight = self.stored
        if self.rounding:
            assert self.scale is not None
            return integer_linear(x, weight, self.scale, self.bias)
        if self.scale is not None:
            weight = weight * self.scale[:, None].to(x.dtype)
        return functional.linear(x, weight, self.bias)

    def packed(self, x: Tensor) -> Tensor:
        """The layer by the kernel that fits its weight."""
        out: Tensor
        if self.kept is None:
            out = kernels.int8_linear.default(x, self.values, self.scale, self.bias)
        elif not isinstance(self.kept, Runs):
            sizes = self.stored.shape[::-1]
            out = kernels.sparse24_linear.default(x, self.values, self.index, self.bias, *sizes)
        elif self.scale is None:
            runs = (self.kept.rows, self.kept.run)
            out = kernels.vnm_linear.default(x, self.values, self.index, self.bias, *runs)
        else:
            reads = (self.values, self.scale, self.index, self.bias)
            kernel = kernels.vnm_dynamic_linear if self.rounding else kernels.vnm_int8_linear
            out = kernel.default(x, *reads, self.kept.rows, self.kept.run)
        return out

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
