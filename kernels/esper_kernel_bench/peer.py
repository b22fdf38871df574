"""Peers: linear layers of other libraries, put together to the layer that is measured.

A library offers x W^T. What a gated MLP or query, key and value need besides is done as a model
would do it with that library: two products and an activation, or one product that is split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import AbsentError, Built, Call, Contender
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.problem import TOLERANCE, TOLERANCE_INT8, Problem
from esper_kernels import roofline
from esper_kernels.activations import ACTIVATIONS

Linear = Callable[[Tensor], Tensor]
"""x W^T + bias on rows (M, K)."""


@dataclass(frozen=True)
class Packed:
    """A weight in a library's format: `make` copies it, `stored` says what it weighs."""

    make: Callable[[], Linear]
    stored: roofline.Stored
    unit: str


@dataclass(frozen=True)
class Library:
    """A library's linear layer.

    Attributes:
        name: as results show it.
        dtypes: of the input.
        pack: from weight and bias to its format; raises AbsentError, or whatever the library does.
        int8: whether it rounds weights.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    pack: Callable[[Tensor, Tensor | None], Packed]
    int8: bool = False


def whole(library: Library, layer: Layer, dtype: torch.dtype) -> Contender:
    """The library on the whole weight, a peer of everything."""
    compression = Compression.parse("int8" if library.int8 else "dense")
    role = {"dense": "dense", "dense, again": "again"}.get(library.name, "peer")
    build = partial(_build, library, compression, dtype)
    return Contender(library.name, role, compression.text, 1.0, build)  # type: ignore[arg-type]


def sparse(library: Library, compression: Compression, dtype: torch.dtype) -> Contender:
    """The library on the weight with that pattern, a peer of ours of equal density."""
    build = partial(_build, library, compression, dtype)
    return Contender(library.name, "peer", compression.text, compression.density, build)


def factors(library: Library, compression: Compression, dtype: torch.dtype) -> Contender:
    """The library on the two factors of a low-rank weight, one after the other."""

    def build(problem: Problem) -> Built:
        down, up = problem.low_rank(compression)
        first, second = library.pack(down, None), library.pack(up, problem.bias)

        def make() -> Call:
            before, after = first.make(), second.make()
            return lambda x: after(before(x))

        def work(m: int) -> roofline.Work:
            n, k = problem.layer.outputs, problem.layer.inputs
            return roofline.low_rank_linear(m, n, k, len(down), dtype.itemsize, first.unit)

        weighs = int(first.stored.bytes + second.stored.bytes)
        return Built(make, weighs, problem.reference(down, up), TOLERANCE[dtype], work)

    name = f"{library.name}, twice"
    return Contender(name, "peer", compression.text, compression.density, build)


def _build(
    library: Library, compression: Compression, dtype: torch.dtype, problem: Problem
) -> Built:
    if dtype not in library.dtypes:
        raise AbsentError(f"takes no {str(dtype).removeprefix('torch.')}")
    weights = problem.pruned(compression)
    packed = [library.pack(weight, problem.bias) for weight in weights]
    stored = [each.stored for each in packed]
    size, unit = dtype.itemsize, packed[0].unit

    def work(m: int) -> roofline.Work:
        if problem.layer.kind == "gated":
            return roofline.gated_linear(m, stored[0], stored[1], size, unit)
        return roofline.linear(m, stored[0], size, unit)

    return Built(
        make=lambda: composed(problem.layer, [each.make() for each in packed]),
        bytes=int(sum(each.bytes for each in stored)),
        reference=problem.reference(*weights),
        tolerance=TOLERANCE_INT8 if library.int8 else TOLERANCE[dtype],
        work=work,
    )


def composed(layer: Layer, linears: Sequence[Linear]) -> Call:
    """The layer made of linear layers."""
    if layer.kind == "gated":
        gate, up = linears
        activation = ACTIVATIONS[layer.activation].forward
        return lambda x: activation(gate(x)) * up(x)
    (linear,) = linears
    if layer.kind == "linear":
        return linear
    queries, shared, size = layer.heads

    def projections(x: Tensor) -> Any:
        out = linear(x.flatten(0, 1)).reshape(*x.shape[:2], -1, size)
        parts = torch.split(out, [queries, shared, shared], 2)
        return [part.transpose(1, 2).contiguous() for part in parts]

    return projections
