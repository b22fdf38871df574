"""One layer with random numbers in it: weights, inputs, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import AbsentError
from esper_kernel_bench.layers import Layer
from esper_kernels.activations import ACTIVATIONS

CHECKED = 32  # rows of each input whose outputs are compared with the reference
_CHUNK = 1024  # outputs whose weights are in float64 at a time

# Relative error in the Frobenius norm that rounding explains, with room: outputs are rounded to the
# dtype, sums are in float32; int8 rounds weights and, in some peers, inputs too.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TOLERANCE_INT8 = 4e-2


class Problem:
    """A layer of one dtype on one device, for several numbers of rows.

    Args:
        layer: the layer.
        rows: the numbers of rows; the input of M rows is the first M rows of one input.
        seed: of all numbers.
    """

    def __init__(
        self, layer: Layer, rows: Sequence[int], dtype: torch.dtype, device: str, seed: int
    ) -> None:
        self.layer = layer
        self.rows = tuple(rows)
        self.dtype = dtype
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        count = 2 if layer.kind == "gated" else 1
        self.weights = tuple(
            self._random(layer.outputs, layer.inputs) / sqrt(layer.inputs) for _ in range(count)
        )
        self.bias = self._random(layer.outputs) if layer.bias else None
        self.x = self._random(max(rows), layer.inputs)

    def _random(self, *shape: int) -> Tensor:
        # Not zeros and not small integers: data that toggles few bits draws less power, and a GPU
        # then clocks higher than it would in use.
        numbers = torch.randn(shape, generator=self._generator, device=self.device)
        return numbers.to(self.dtype)

    @cached_property
    def checked(self) -> Tensor:
        """Rows of `x` that are compared, ascending: the first and last of every input, and some."""
        chosen = {0}
        for m in self.rows:
            chosen.update(range(min(4, m)), range(max(0, m - 4), m))
            some = torch.randperm(m, generator=self._generator, device=self.device)
            chosen.update(some[: CHECKED - 8].tolist())
        return torch.tensor(sorted(chosen), device=self.device)

    def pruned(self, compression: Compression) -> tuple[Tensor, ...]:
        """The weights with zeros by the pattern, the cells of most magnitude kept.

        Raises AbsentError where the pattern does not fit.
        """
        pattern = compression.pattern
        if pattern is None:
            return self.weights
        if reason := compression.misfit(self.layer.outputs, self.layer.inputs):
            raise AbsentError(reason)

        def prune(weight: Tensor) -> Tensor:
            on = pattern.choose(pattern.cells(weight.float().abs()))
            return torch.where(pattern.spread(on, tuple(weight.shape)), weight, 0)

        return tuple(prune(weight) for weight in self.weights)

    def low_rank(self, compression: Compression) -> tuple[Tensor, Tensor]:
        """Random factors (r, K) and (N, r); r is a multiple of 16, as tiles are."""
        n, k = self.layer.outputs, self.layer.inputs
        rank = round(compression.density * n * k / (n + k) / 16) * 16
        if rank < 16:
            raise AbsentError(f"a share of {compression.density} leaves no rank")
        down = self._random(rank, k) / sqrt(k)
        return down, self._random(n, rank) / sqrt(rank)

    def reference(self, *weights: Tensor) -> Tensor:
        """The outputs at the checked rows in float64, as float32 (rows, outputs)."""
        x = self.x[self.checked].double()
        if self.layer.kind == "gated":
            gate, up = (_product(x, weight) for weight in weights)
            out = ACTIVATIONS[self.layer.activation].forward(gate) * up
        else:
            for weight in weights:  # several are factors, the first applied first
                x = _product(x, weight)
            out = x if self.bias is None else x + self.bias.double()
        return out.float()

    def input(self, m: int) -> Tensor:
        """The input of M rows as the layer takes it: (M, K), or (1, M, K) for projections."""
        x = self.x[:m]
        return x.unsqueeze(0) if self.layer.kind == "projections" else x

    def error(self, output: Any, reference: Tensor, m: int) -> float:
        """Relative error of the output for M rows at the checked rows; infinite if not finite."""
        out = self._as_rows(output)
        if tuple(out.shape) != (m, self.layer.outputs):
            raise ValueError(f"the output is of shape {tuple(out.shape)}")
        within = self.checked < m
        wrong = out[self.checked[within]].double() - reference[within].double()
        if not bool(torch.isfinite(wrong).all()):
            return float("inf")
        return float(wrong.norm() / reference[within].double().norm())

    def _as_rows(self, output: Any) -> Tensor:
        if self.layer.kind != "projections":
            tensor: Tensor = output
            return tensor
        return torch.cat([part.transpose(1, 2).flatten(2)[0] for part in output], 1)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in float64."""
    parts = [functional.linear(x, part.double()) for part in torch.split(weight, _CHUNK)]
    return torch.cat(parts, 1)
