"""A weight of any format, as the operators multiply with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from torch.nn import functional

from esper_kernels.int8_linear import op as int8
from esper_kernels.vnm_int8_linear import op as vnm_int8
from esper_kernels.vnm_linear import op as vnm


@dataclass(frozen=True)
class Weight:
    """W (N, K): dense without an index, floating without a scale.

    Attributes:
        values: (N, K), or (N, kept * run) where there is an index.
        scale: (N,) for integers.
        index: (groups, kept) of runs.
        rows, run: of the index.
    """

    values: Tensor
    scale: Tensor | None
    index: Tensor | None
    rows: int | None
    run: int | None

    def times(self, x: Tensor) -> Tensor:
        """x W^T, (M, K) to (M, N)."""
        values, scale, index, rows, run = self.values, self.scale, self.index, self.rows, self.run
        if index is None and scale is None:
            return functional.linear(x, values)
        if index is None:
            return cast(Tensor, int8.int8_linear(x, values, scale, None))
        if scale is None:
            return cast(Tensor, vnm.vnm_linear(x, values, index, None, rows, run))
        return cast(Tensor, vnm_int8.vnm_int8_linear(x, values, scale, index, None, rows, run))

    def transposed_times(self, grad: Tensor, inputs: int) -> Tensor:
        """grad W, (M, N) to (M, K)."""
        values, scale, index, rows, run = self.values, self.scale, self.index, self.rows, self.run
        if index is None and scale is None:
            return grad @ values
        if index is None:
            return cast(Tensor, int8.backward_x(grad, values, scale))
        if scale is None:
            return cast(Tensor, vnm.backward_x(grad, values, index, rows, run, inputs))
        return cast(Tensor, vnm_int8.backward_x(grad, values, scale, index, rows, run, inputs))

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient of floating values: grad^T x where they are."""
        if self.index is None:
            return grad.t() @ x
        return cast(Tensor, vnm.backward_values(grad, x, self.index, self.rows, self.run))
