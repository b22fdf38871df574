"""Each operator with its reference and arguments for it, of any size and dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper_kernels import ops
from esper_kernels.attention_projections import reference as attention_projections
from esper_kernels.gated_linear import reference as gated_linear
from esper_kernels.int8 import quantize
from esper_kernels.int8_linear import reference as int8_linear
from esper_kernels.low_rank_linear import reference as low_rank_linear
from esper_kernels.run_sparse import RunSparse
from esper_kernels.vnm_dynamic_linear import reference as vnm_dynamic_linear
from esper_kernels.vnm_int8_linear import reference as vnm_int8_linear
from esper_kernels.vnm_linear import reference as vnm_linear


@dataclass(frozen=True)
class Sizes:
    """What a problem is drawn by."""

    samples: int = 5
    inputs: int = 24
    outputs: int = 20
    rows: int = 8
    run: int = 4
    density: float = 0.5
    bias: bool = True


@dataclass(frozen=True)
class Problem:
    """An operator and how to call it.

    Attributes:
        op: the operator.
        reference: what it computes.
        weights: `weights(sizes, dtype)` gives all arguments behind x.
        trains: positions, among all arguments, of what has a gradient.
        dims: of x.
        smooth: whether its gradient is its derivative.
        autocast: whether autocast makes x its type.
    """

    op: Any
    reference: Callable[..., Any]
    weights: Callable[[Sizes, torch.dtype], list[Any]]
    trains: tuple[int, ...]
    dims: int = 2
    smooth: bool = True
    autocast: bool = True

    def arguments(self, sizes: Sizes, dtype: torch.dtype) -> list[Any]:
        """All arguments; x is (samples, inputs), or (2, samples, inputs)."""
        x = torch.randn(*(2,) * (self.dims - 2), sizes.samples, sizes.inputs).to(dtype)
        return [x, *self.weights(sizes, dtype)]

    def trainable(self, sizes: Sizes, dtype: torch.dtype) -> list[Any]:
        """The same, with what trains requiring its gradient."""
        found = self.arguments(sizes, dtype)
        for position in self.trains:
            if found[position] is not None:
                found[position] = found[position].clone().requires_grad_()
        return found


def sparse(sizes: Sizes, dtype: torch.dtype) -> RunSparse:
    """A packed weight whose groups keep different numbers of runs."""
    groups, runs = -(-sizes.outputs // sizes.rows), -(-sizes.inputs // sizes.run)
    kept = torch.rand(groups, runs) < sizes.density
    mask = kept.repeat_interleave(sizes.rows, 0)[: sizes.outputs]
    mask = mask.repeat_interleave(sizes.run, 1)[:, : sizes.inputs]
    return RunSparse.pack(
        (dense(sizes.outputs, sizes.inputs) * mask).to(dtype), sizes.rows, sizes.run
    )


def dense(outputs: int, inputs: int) -> Tensor:
    """A weight that keeps the size of what it multiplies."""
    return torch.randn(outputs, inputs) / math.sqrt(inputs)


def _bias(sizes: Sizes, dtype: torch.dtype) -> Tensor | None:
    return torch.randn(sizes.outputs).to(dtype) if sizes.bias else None


def _vnm(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
    packed = sparse(sizes, dtype)
    return [packed.values, packed.index, _bias(sizes, dtype), sizes.rows, sizes.run]


def _int8(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
    return [*quantize(dense(sizes.outputs, sizes.inputs)), _bias(sizes, dtype)]


def _vnm_int8(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
    packed = sparse(sizes, torch.float32)
    return [*quantize(packed.values), packed.index, _bias(sizes, dtype), sizes.rows, sizes.run]


def _gated(packed: bool, integers: bool, activation: str) -> Callable[..., list[Any]]:
    def weights(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
        both = [sparse(sizes, dtype) for _ in range(2)]
        index = [weight.index if packed else None for weight in both]
        values = [weight.values if packed else weight.unpack() for weight in both]
        scale: list[Tensor | None] = [None, None]
        if integers:
            values, scale = [list(pair) for pair in zip(*map(quantize, values), strict=True)]
        pattern = [sizes.rows, sizes.run] if packed else [None, None]
        return [*values, *scale, *index, activation, *pattern]

    return weights


def _low_rank(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
    down, up = dense(sizes.rows, sizes.inputs), dense(sizes.outputs, sizes.rows)
    return [down.to(dtype), up.to(dtype), _bias(sizes, dtype)]


def _attention(sizes: Sizes, dtype: torch.dtype) -> list[Any]:
    heads, kv_heads, size = 4, 2, sizes.run
    weight = dense((heads + 2 * kv_heads) * size, sizes.inputs).to(dtype)
    bias = torch.randn(len(weight)).to(dtype) if sizes.bias else None
    return [weight, bias, heads, kv_heads, size]


PROBLEMS = {
    "vnm_linear": Problem(ops.vnm_linear, vnm_linear.forward, _vnm, (0, 1, 3)),
    "int8_linear": Problem(ops.int8_linear, int8_linear.forward, _int8, (0, 3)),
    "vnm_int8_linear": Problem(ops.vnm_int8_linear, vnm_int8_linear.forward, _vnm_int8, (0, 4)),
    "vnm_dynamic_linear": Problem(
        ops.vnm_dynamic_linear,
        vnm_dynamic_linear.forward,
        _vnm_int8,
        (0, 4),
        smooth=False,
        autocast=False,
    ),
    "low_rank_linear": Problem(
        ops.low_rank_linear, low_rank_linear.forward, _low_rank, (0, 1, 2, 3)
    ),
    "attention_projections": Problem(
        ops.attention_projections, attention_projections.forward, _attention, (0, 1, 2), 3
    ),
    **{
        f"gated_linear {name}": Problem(
            ops.gated_linear, gated_linear.forward, _gated(*how), (0,) if how[1] else (0, 1, 2)
        )
        for name, how in {
            "dense": (False, False, "silu"),
            "sparse": (True, False, "gelu_tanh"),
            "int8": (False, True, "gelu"),
            "sparse int8": (True, True, "sigmoid"),
            "relu": (False, False, "relu"),
        }.items()
    },
}
