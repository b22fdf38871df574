"""What there is for a linear layer on a GPU: cuBLAS, cuSPARSELt, CUTLASS, BSR, torchao's int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import AbsentError, Contender, copying, sides
from esper_kernel_bench.cpu_peers import AGAIN, DENSE, FLOATING
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.peer import Library, Linear, Packed, factors, sparse, whole
from esper_kernels import roofline

HALF = (torch.float16, torch.bfloat16)
_BLOCK = 64  # of BSR: it divides blocks of 128x64
_ROWS = 16  # of x, which cuSPARSELt and BSR's tiles want a multiple of


def _padded(x: Tensor, multiple: int) -> Tensor:
    """x with rows of zeros below, up to a multiple."""
    short = -len(x) % multiple
    return functional.pad(x, (0, 0, 0, short)) if short else x


# -- 2:4 -------------------------------------------------------------------------------------------


def _stored24(weight: Tensor) -> roofline.Stored:
    return roofline.sparse24(*sides(weight), weight.itemsize)


def _subclass(name: str) -> Any:
    def pack(weight: Tensor, bias: Tensor | None) -> Packed:
        """PyTorch's tensor subclass, which transposes and pads as it likes."""
        kind = getattr(torch.sparse, name)

        def make() -> Linear:
            packed = kind.from_dense(weight)
            own = None if bias is None else bias.clone()
            return lambda x: functional.linear(x, packed, own)

        return Packed(make, _stored24(weight), roofline.UNITS[weight.dtype])

    return pack


def _searched(weight: Tensor, bias: Tensor | None) -> Packed:
    """cuSPARSELt with the algorithm that its own search finds for each number of rows."""
    found: dict[int, int] = {}

    def make() -> Linear:
        compressed = torch._cslt_compress(weight)
        own = None if bias is None else bias.clone()

        def run(x: Tensor) -> Tensor:
            wide = _padded(x, _ROWS).t()
            rows = wide.shape[1]
            if rows not in found:  # the first call is a warm-up, outside of any graph
                found[rows] = torch._cslt_sparse_mm_search(
                    compressed, wide, bias=own, transpose_result=True
                )
            out = torch._cslt_sparse_mm(
                compressed, wide, bias=own, transpose_result=True, alg_id=found[rows]
            )
            return out[: len(x)]

        return run

    return Packed(make, _stored24(weight), roofline.UNITS[weight.dtype])


# -- blocks ----------------------------------------------------------------------------------------


def _bsr(weight: Tensor, bias: Tensor | None) -> Packed:
    """PyTorch's Triton kernel for BSR weights, left transposed as it comes."""
    from torch.sparse._triton_ops import bsr_dense_addmm

    matrix = weight.to_sparse_bsr((_BLOCK, _BLOCK))
    outputs = len(weight)
    column = weight.new_zeros(outputs) if bias is None else bias

    def run(x: Tensor, packed: Tensor, own: Tensor) -> Tensor:
        wide = _padded(x, _BLOCK).t()
        base = own[:, None].expand(outputs, wide.shape[1])
        out: Tensor = bsr_dense_addmm(base, packed, wide)
        return out.t()[: len(x)]

    nonzeros = matrix.values().numel()
    stored = roofline.compressed(*sides(weight), weight.itemsize, nonzeros, _BLOCK)
    return Packed(copying(run, (matrix, column)), stored, roofline.UNITS[weight.dtype])


# -- int8 ------------------------------------------------------------------------------------------


def _torchao(config: str) -> Any:
    def pack(weight: Tensor, bias: Tensor | None) -> Packed:
        """torchao's weight, its product compiled as torchao wants it."""
        from torchao import quantization

        compiled = torch.compile(functional.linear, dynamic=False, fullgraph=True)

        def make() -> Linear:
            outputs, inputs = weight.shape
            layer = torch.nn.Linear(inputs, outputs, device="meta", dtype=weight.dtype)
            layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            quantization.quantize_(layer, getattr(quantization, config)())
            own = None if bias is None else bias.clone()
            return lambda x: compiled(x, layer.weight, own)

        unit = "int8" if "DynamicActivation" in config else roofline.UNITS[weight.dtype]
        return Packed(make, roofline.int8(*sides(weight)), unit)

    return pack


def _int8pack(weight: Tensor, bias: Tensor | None) -> Packed:
    """`aten::_weight_int8pack_mm`: inputs stay floating."""
    if weight.shape[1] % 32:
        raise AbsentError("wants rows whose length is a multiple of 32")
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-12)
    integers = (wide / scale[:, None]).round().to(torch.int8)

    def run(x: Tensor, packed: Tensor, scales: Tensor, own: Tensor | None) -> Tensor:
        out = torch._weight_int8pack_mm(x, packed, scales)
        return out if own is None else out.add_(own)

    weights = (integers, scale.to(weight.dtype), bias)
    unit = roofline.UNITS[weight.dtype]
    return Packed(copying(run, weights), roofline.int8(*sides(weight)), unit)


WHOLE = (
    Library("torchao int8 weight-only", HALF, _torchao("Int8WeightOnlyConfig"), int8=True),
    Library(
        "torchao int8 dynamic", HALF, _torchao("Int8DynamicActivationInt8WeightConfig"), int8=True
    ),
    Library("int8 weight-only, _weight_int8pack_mm", HALF, _int8pack, int8=True),
)
SPARSE24 = (
    Library("cuSPARSELt", HALF, _subclass("SparseSemiStructuredTensorCUSPARSELT")),
    Library("cuSPARSELt, searched", HALF, _searched),
    Library("CUTLASS 2:4", HALF, _subclass("SparseSemiStructuredTensorCUTLASS")),
)
BSR = Library("torch BSR, Triton", FLOATING, _bsr)


def peers(layer: Layer, compressions: Sequence[Compression], dtype: torch.dtype) -> list[Contender]:
    """All that stands beside these compressions of that layer."""
    found = [whole(library, layer, dtype) for library in (DENSE, AGAIN, *WHOLE)]
    if layer.kind != "linear":
        return found
    shares = {c.density for c in compressions if c.family in ("runs", "blocks", "2:4")}
    blocks = [Compression.parse(f"128x64@{share:g}") for share in sorted(shares)]
    found += [sparse(BSR, each, dtype) for each in blocks]
    if 0.5 in shares:  # half of the weights: 2:4 is the other way to get there
        found += [sparse(library, Compression.parse("2:4"), dtype) for library in SPARSE24]
    for compression in compressions:
        if compression.family == "low-rank":
            found.append(factors(DENSE, compression, dtype))
    return found
