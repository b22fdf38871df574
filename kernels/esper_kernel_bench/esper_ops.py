"""The ops of `esper_kernels` on the layers that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import Built, Contender, copying, nbytes, sides
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.problem import TOLERANCE, TOLERANCE_INT8, Problem
from esper_kernels import int8, ops, roofline
from esper_kernels.run_sparse import RunSparse
from esper_kernels.sparse24 import Sparse24

Build = Callable[[Compression, torch.dtype, Problem], Built]


@dataclass(frozen=True)
class _Packed:
    """A weight as an op takes it; what the format does not have is None.

    `stored` is what it weighs.
    """

    values: Tensor
    scale: Tensor | None
    index: Tensor | None
    rows: int | None
    run: int | None
    stored: roofline.Stored


def _pack(weight: Tensor, compression: Compression) -> _Packed:
    """Sparse in runs, int8, both or neither."""
    outputs, inputs = weight.shape
    pattern, values = compression.pattern, weight
    scale: Tensor | None = None
    packed: RunSparse | None = None
    if pattern is not None:
        packed = RunSparse.pack(weight, pattern.rows, pattern.columns)
        values = packed.values
    if compression.int8:
        values, scale = int8.quantize(values)
    if packed is None:
        stored = roofline.dense(outputs, inputs, values.itemsize)
        if compression.int8:
            stored = roofline.int8(outputs, inputs)
        return _Packed(values, scale, None, None, None, stored)
    stored = roofline.run_sparse(
        outputs,
        inputs,
        values.itemsize,
        packed.index.shape[1],
        packed.rows,
        packed.run,
        scales=compression.int8,
    )
    return _Packed(values, scale, packed.index, packed.rows, packed.run, stored)


def _tolerance(compression: Compression, dtype: torch.dtype) -> float:
    return TOLERANCE_INT8 if compression.int8 else TOLERANCE[dtype]


def _linear(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    """`vnm_linear`, `int8_linear` or `vnm_int8_linear`."""
    (weight,) = problem.pruned(compression)
    w = _pack(weight, compression)
    weights = [w.values, w.scale, w.index, problem.bias]

    def run(x: Tensor, values: Any, scale: Any, index: Any, bias: Tensor | None) -> Any:
        if index is None:
            return ops.int8_linear(x, values, scale, bias)
        if scale is None:
            return ops.vnm_linear(x, values, index, bias, w.rows, w.run)
        return ops.vnm_int8_linear(x, values, scale, index, bias, w.rows, w.run)

    def work(m: int) -> roofline.Work:
        return roofline.linear(m, w.stored, dtype.itemsize, roofline.UNITS[dtype])

    reference, tolerance = problem.reference(weight), _tolerance(compression, dtype)
    return Built(copying(run, weights), nbytes(weights), reference, tolerance, work)


def _dynamic(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    """`vnm_dynamic_linear`: inputs are rounded row by row, and integers multiplied."""
    (weight,) = problem.pruned(compression)
    w = _pack(weight, compression)
    weights = [w.values, w.scale, w.index, problem.bias]

    def run(x: Tensor, values: Any, scale: Any, index: Any, bias: Tensor | None) -> Any:
        return ops.vnm_dynamic_linear(x, values, scale, index, bias, w.rows, w.run)

    def work(m: int) -> roofline.Work:
        return roofline.linear(m, w.stored, dtype.itemsize, "int8")

    reference = problem.reference(weight)
    return Built(copying(run, weights), nbytes(weights), reference, TOLERANCE_INT8, work)


def _sparse24(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    (weight,) = problem.pruned(compression)
    outputs, inputs = weight.shape
    packed = Sparse24.pack(weight)
    weights = [packed.values, packed.metadata, problem.bias]

    def run(x: Tensor, values: Any, metadata: Any, bias: Tensor | None) -> Any:
        return ops.sparse24_linear(x, values, metadata, bias, inputs, outputs)

    stored = roofline.sparse24(outputs, inputs, dtype.itemsize)

    def work(m: int) -> roofline.Work:
        return roofline.linear(m, stored, dtype.itemsize, roofline.UNITS[dtype])

    reference = problem.reference(weight)
    return Built(copying(run, weights), nbytes(weights), reference, TOLERANCE[dtype], work)


def _low_rank(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    down, up = problem.low_rank(compression)
    weights = [down, up, problem.bias]
    n, k = problem.layer.outputs, problem.layer.inputs

    def work(m: int) -> roofline.Work:
        unit = roofline.UNITS[dtype]
        return roofline.low_rank_linear(m, n, k, len(down), dtype.itemsize, unit)

    reference = problem.reference(down, up)
    make = copying(ops.low_rank_linear, weights)
    return Built(make, nbytes(weights), reference, TOLERANCE[dtype], work)


# -- more than one product -------------------------------------------------------------------------


def _gated(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    pruned = problem.pruned(compression)
    gate, up = (_pack(weight, compression) for weight in pruned)
    weights = [gate.values, up.values, gate.scale, up.scale, gate.index, up.index]
    activation = problem.layer.activation

    def run(x: Tensor, *own: Any) -> Any:
        return ops.gated_linear(x, *own, activation, gate.rows, gate.run)

    def work(m: int) -> roofline.Work:
        unit = roofline.UNITS[dtype]
        return roofline.gated_linear(m, gate.stored, up.stored, dtype.itemsize, unit)

    reference, tolerance = problem.reference(*pruned), _tolerance(compression, dtype)
    return Built(copying(run, weights), nbytes(weights), reference, tolerance, work)


def _projections(compression: Compression, dtype: torch.dtype, problem: Problem) -> Built:
    (weight,) = problem.weights
    weights = [weight, problem.bias]
    heads, shared, size = problem.layer.heads

    def run(x: Tensor, own: Tensor, bias: Tensor | None) -> Any:
        return ops.attention_projections(x, own, bias, heads, shared, size)

    stored = roofline.dense(*sides(weight), weight.itemsize)

    def work(m: int) -> roofline.Work:
        return roofline.linear(m, stored, dtype.itemsize, roofline.UNITS[dtype])

    reference = problem.reference(weight)
    return Built(copying(run, weights), nbytes(weights), reference, TOLERANCE[dtype], work)


_LINEAR: dict[str, tuple[str, Build]] = {
    "runs": ("vnm_linear", _linear),
    "blocks": ("vnm_linear", _linear),
    "int8": ("int8_linear", _linear),
    "2:4": ("sparse24_linear", _sparse24),
    "low-rank": ("low_rank_linear", _low_rank),
}


def _served(layer: Layer, compression: Compression, device: str) -> list[tuple[str, Build]]:
    """Names and builders of the ops that serve a compression in a layer."""
    if layer.kind == "gated":
        served = compression.family in ("dense", "runs", "blocks", "int8")
        return [("gated_linear", _gated)] if served else []
    if layer.kind == "projections":
        served = compression.family == "dense"
        return [("attention_projections", _projections)] if served else []
    if compression.int8 and compression.pattern is not None:
        weights = ("vnm_int8_linear", _linear)
        return [weights, ("vnm_dynamic_linear", _dynamic)] if device == "cpu" else [weights]
    return [_LINEAR[compression.family]] if compression.family in _LINEAR else []


def contenders(
    layer: Layer, compressions: Sequence[Compression], dtype: torch.dtype, device: str
) -> list[Contender]:
    """One for each op of ours that serves a compression in that layer."""
    return [
        Contender(
            f"esper {name}",
            "esper",
            compression.text,
            compression.density,
            partial(build, compression, dtype),
        )
        for compression in compressions
        for name, build in _served(layer, compression, device)
    ]
