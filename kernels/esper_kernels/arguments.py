"""Checks of arguments that ops share, and the one shape that kernels see.

They compare shapes and dtypes only, so they hold for fake tensors too, where a compiler or exporter
meets a mistake first. Each raises ValueError with one sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def flat(x: Tensor) -> Tensor:
    """(..., K) of any strides as contiguous rows (M, K)."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def check_input(op: str, x: Tensor) -> None:
    """x holds rows of a floating dtype."""
    if x.ndim < 1 or x.dtype not in FLOATING:
        raise ValueError(
            f"{op}: x must be (..., inputs) of float32, float16, bfloat16 or float64, it is "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )


def check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """A tensor has the dtype that goes with x or that its format demands."""
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}, it is {tensor.dtype}")


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor has the shape that the others ask for."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} must be of shape {shape}, it is {tuple(tensor.shape)}")


def check_matrix(op: str, name: str, matrix: Tensor, width: int) -> None:
    """A matrix with that many columns."""
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise ValueError(
            f"{op}: {name} must be a matrix with {width} columns, it is of shape "
            f"{tuple(matrix.shape)}"
        )


def check_bias(op: str, bias: Tensor | None, x: Tensor, outputs: int) -> None:
    """A bias holds a number for each output, in the dtype of x."""
    if bias is not None:
        check_dtype(op, "bias", bias, x.dtype)
        check_shape(op, "bias", bias, (outputs,))


def check_int8(op: str, values: Tensor, scale: Tensor) -> None:
    """Integers with a float32 scale for each row."""
    check_dtype(op, "values", values, torch.int8)
    check_dtype(op, "scale", scale, torch.float32)
    check_shape(op, "scale", scale, (values.shape[0],))


def check_runs(op: str, values: Tensor, index: Tensor, rows: int, run: int, inputs: int) -> None:
    """`values` and `index` are a `RunSparse` weight for that many inputs."""
    check_dtype(op, "index", index, torch.int32)
    if values.ndim != 2 or rows < 1 or run < 1 or values.shape[1] % run:
        raise ValueError(
            f"{op}: values must be (outputs, kept * {run}) with groups of at least 1 row, they "
            f"are of shape {tuple(values.shape)} with groups of {rows}"
        )
    check_shape(op, "index", index, (-(-values.shape[0] // rows), values.shape[1] // run))
    if index.shape[1] > -(-inputs // run):
        raise ValueError(
            f"{op}: x has {inputs} inputs, fewer than the {index.shape[1]} runs of {run} in index"
        )


def untrained(op: str, *scales: Tensor | None) -> None:
    """Scales are constants: a gradient of theirs would be silently lost."""
    if any(scale is not None and scale.requires_grad for scale in scales):
        raise ValueError(f"{op}: scales of int8 weights do not train: they must not require grad")
