"""What PyTorch has for a linear layer on a CPU: MKL and oneDNN, dense, int8 and sparse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import AbsentError, Contender, copying, sides
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.peer import Library, Packed, factors, sparse, whole
from esper_kernels import roofline

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 32  # of BSR: it divides blocks of 128x64, and MKL likes it better than 16 and 64
_HINT = 64  # rows that oneDNN is told to pack for


def _dense(weight: Tensor, bias: Tensor | None) -> Packed:
    stored = roofline.dense(*sides(weight), weight.itemsize)
    return Packed(copying(functional.linear, (weight, bias)), stored, roofline.UNITS[weight.dtype])


def _prepacked(weight: Tensor, bias: Tensor | None) -> Packed:
    """The layout that oneDNN chooses, which is also what Inductor's frozen graphs call."""
    ops = torch.ops.mkldnn

    def make() -> Any:
        own = None if bias is None else bias.clone()
        packed = ops._reorder_linear_weight(weight, _HINT)
        return lambda x: ops._linear_pointwise(x, packed, own, "none", [], "")

    stored = roofline.dense(*sides(weight), weight.itemsize)
    return Packed(make, stored, roofline.UNITS[weight.dtype])


def _integers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with a float32 scale for each output."""
    wide = weight.float()
    scale = (wide.abs().amax(1) / 127).clamp_min(1e-12)
    return (wide / scale[:, None]).round().to(torch.int8), scale


def _dynamic(engine: str) -> Callable[[Tensor, Tensor | None], Packed]:
    """`quantized::linear_dynamic`: inputs are rounded with one scale for all of them."""

    def pack(weight: Tensor, bias: Tensor | None) -> Packed:
        integers, scale = _integers(weight)
        zeros = torch.zeros(len(scale), dtype=torch.int64)

        def make() -> Any:
            before = torch.backends.quantized.engine
            torch.backends.quantized.engine = engine
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # quantised tensors are to go some day
                    tensor = torch._make_per_channel_quantized_tensor(integers, scale, zeros, 0)
                    packed = torch.ops.quantized.linear_prepack(tensor, bias)
            finally:
                torch.backends.quantized.engine = before
            return lambda x: torch.ops.quantized.linear_dynamic(x, packed)

        return Packed(make, roofline.int8(*sides(weight)), "int8")

    return pack


def _qlinear(weight: Tensor, bias: Tensor | None) -> Packed:
    """oneDNN's int8 product as Inductor calls it, inputs rounded with one scale for all of them."""
    integers, scale = _integers(weight)
    ops, dtype = torch.ops.onednn, weight.dtype
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    wide = None if bias is None else bias.float()

    def make() -> Any:
        packed = ops.qlinear_prepack(integers, [_HINT, weight.shape[1]])
        own, scales = None if wide is None else wide.clone(), scale.clone()

        def run(x: Tensor) -> Tensor:
            wide_x = x.float()
            step = (wide_x.abs().max() / 127).clamp_min(1e-12)
            whole_x = (wide_x / step).round_().add_(128).to(torch.uint8)
            middle = torch.full((1,), 128, dtype=torch.int32)
            out: Tensor = ops.qlinear_pointwise(
                whole_x, step.reshape(1), middle, packed, scales, zeros, own, 1.0, 0, dtype,
                "none", [], "",
            )  # fmt: skip
            return out

        return run

    return Packed(make, roofline.int8(*sides(weight)), "int8")


def _int_mm(weight: Tensor, bias: Tensor | None) -> Packed:
    """`torch._int_mm`, a scale for each row of the input: what `quantize` makes of a layer."""
    integers, scale = _integers(weight)

    def run(x: Tensor, columns: Tensor, scales: Tensor, own: Tensor | None) -> Tensor:
        wide = x.float()  # a quotient of up to 127 in bfloat16 would be off by half a step
        step = (wide.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        product = torch._int_mm((wide / step).round_().to(torch.int8), columns.t())
        out = (product * (step * scales)).to(x.dtype)
        return out if own is None else out.add_(own)

    return Packed(copying(run, (integers, scale, bias)), roofline.int8(*sides(weight)), "int8")


def _weight_only(weight: Tensor, bias: Tensor | None) -> Packed:
    """`aten::_weight_int8pack_mm`: inputs stay floating."""
    if weight.shape[1] % 32:
        raise AbsentError("reads beyond rows whose length is no multiple of 32, and may crash")
    integers, scale = _integers(weight)

    def run(x: Tensor, packed: Tensor, scales: Tensor, own: Tensor | None) -> Tensor:
        out = torch._weight_int8pack_mm(x, packed, scales)
        return out if own is None else out.add_(own)

    unit = roofline.UNITS[weight.dtype]
    weights = (integers, scale.to(weight.dtype), bias)
    return Packed(copying(run, weights), roofline.int8(*sides(weight)), unit)


def _by_rows(weight: Tensor, bias: Tensor | None) -> Packed:
    return _transposed(weight.to_sparse_csr(), bias, 1)


def _by_blocks(weight: Tensor, bias: Tensor | None) -> Packed:
    return _transposed(weight.to_sparse_bsr((_BLOCK, _BLOCK)), bias, _BLOCK)


def _transposed(matrix: Tensor, bias: Tensor | None, block: int) -> Packed:
    """W x^T on MKL, left transposed as it comes: copying it would only add time."""
    column = torch.zeros(1, 1, dtype=matrix.dtype) if bias is None else bias[:, None]

    def run(x: Tensor, sparse_weight: Tensor, own: Tensor) -> Tensor:
        return torch.addmm(own, sparse_weight, x.t()).t()

    nonzeros = matrix.values().numel()
    stored = roofline.compressed(*sides(matrix), matrix.values().itemsize, nonzeros, block)
    return Packed(copying(run, (matrix, column)), stored, "fp32")


DENSE = Library("dense", FLOATING, _dense)
AGAIN = Library("dense, again", FLOATING, _dense)
PREPACKED = Library("oneDNN, prepacked", FLOATING, _prepacked)
QLINEAR = Library("int8 dynamic, oneDNN qlinear", FLOATING, _qlinear, int8=True)
WHOLE = (
    PREPACKED,
    Library("int8 dynamic, oneDNN engine", (torch.float32,), _dynamic("onednn"), int8=True),
    Library("int8 dynamic, x86 engine", (torch.float32,), _dynamic("x86"), int8=True),
    QLINEAR,
    Library("int8 dynamic, _int_mm", FLOATING, _int_mm, int8=True),
    Library("int8 weight-only, _weight_int8pack_mm", FLOATING, _weight_only, int8=True),
)
ROWS = Library("MKL CSR", (torch.float32,), _by_rows)
BLOCKS = Library("MKL BSR", (torch.float32,), _by_blocks)


def peers(layer: Layer, compressions: Sequence[Compression], dtype: torch.dtype) -> list[Contender]:
    """All that stands beside these compressions of that layer."""
    found = [whole(library, layer, dtype) for library in (DENSE, AGAIN, *WHOLE)]
    if layer.kind != "linear":
        return found
    for share in sorted({c.density for c in compressions if c.family in ("runs", "blocks")}):
        # Time depends on density, hardly on where the zeros are; blocks suit BSR.
        pattern = Compression.parse(f"128x64@{share:g}")
        found += [sparse(library, pattern, dtype) for library in (ROWS, BLOCKS)]
    for compression in compressions:
        if compression.family == "low-rank":
            found += [factors(library, compression, dtype) for library in (DENSE, PREPACKED)]
    return found
