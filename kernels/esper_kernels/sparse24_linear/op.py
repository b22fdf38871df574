"""`esper::sparse24_linear` and its derivatives as operators of PyTorch.

The three are the partial derivatives of one trilinear form, sum of grad * (x W^T), so each is
differentiated by the two others, to any order.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from esper_kernels.arguments import check_bias, check_dtype, check_matrix, check_shape, flat
from esper_kernels.define import define, differentiate
from esper_kernels.sparse24 import COLUMNS, DTYPES, ROWS
from esper_kernels.sparse24_linear import cpu

_NAME = "esper::sparse24_linear"


def _check(values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> None:
    """A `Sparse24` weight of those sizes."""
    rows, pairs = -(-outputs // ROWS), -(-inputs // (2 * COLUMNS))
    if values.dtype not in DTYPES:
        raise ValueError(
            f"{_NAME}: x and values must be float16 or bfloat16, they are {values.dtype}"
        )
    check_dtype(_NAME, "metadata", metadata, torch.int32)
    check_shape(_NAME, "values", values, (rows, 2 * pairs, 32, 8))
    check_shape(_NAME, "metadata", metadata, (rows, pairs, 32))


# -- forward ---------------------------------------------------------------------------------------


def _shape(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    check_dtype(_NAME, "values", values, x.dtype)
    _check(values, metadata, inputs, outputs)
    check_shape(_NAME, "x", x, (*x.shape[:-1], inputs))
    check_bias(_NAME, bias, x, outputs)
    return x.new_empty(*x.shape[:-1], outputs)


def _compute(
    kernels: ModuleType,
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    inputs: int,
    outputs: int,
) -> Tensor:
    out: Tensor = kernels.forward(
        flat(x), values.contiguous(), metadata.contiguous(), bias, inputs, outputs
    )
    return out.reshape(*x.shape[:-1], outputs)


sparse24_linear = define("sparse24_linear", _shape, _compute, cpu)


# -- gradient of x ---------------------------------------------------------------------------------


def _shape_x(grad: Tensor, values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    check_dtype(_NAME, "grad", grad, values.dtype)
    _check(values, metadata, inputs, outputs)
    check_matrix(_NAME, "grad", grad, outputs)
    return grad.new_empty(grad.shape[0], inputs)


def _compute_x(kernels: ModuleType, *arguments: Any) -> Tensor:
    out: Tensor = kernels.backward_x(*arguments)
    return out


backward_x = define("sparse24_linear_backward_x", _shape_x, _compute_x, cpu)


# -- gradient of values ----------------------------------------------------------------------------


def _shape_values(grad: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    check_dtype(_NAME, "grad", grad, x.dtype)
    rows, pairs = metadata.shape[:2]
    values = grad.new_empty(rows, 2 * pairs, 32, 8)
    _check(values, metadata, x.shape[1], grad.shape[1])
    return values


def _compute_values(kernels: ModuleType, *arguments: Any) -> Tensor:
    out: Tensor = kernels.backward_values(*arguments)
    return out


backward_values = define("sparse24_linear_backward_values", _shape_values, _compute_values, cpu)


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, metadata, _, ctx.inputs, ctx.outputs = inputs
    ctx.save_for_backward(x, values, metadata)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, metadata = ctx.saved_tensors
    for_x, for_values, _, for_bias, *_ = ctx.needs_input_grad
    rows = grad.reshape(-1, ctx.outputs)
    dx = dvalues = None
    if for_x:
        dx = backward_x(rows, values, metadata, ctx.inputs, ctx.outputs).reshape(x.shape)
    if for_values:
        dvalues = backward_values(rows, x.reshape(-1, ctx.inputs), metadata)
    return dx, dvalues, None, rows.sum(0) if for_bias else None, None, None


def _save_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, metadata, ctx.inputs, ctx.outputs = inputs
    ctx.save_for_backward(grad, values, metadata)


def _backward_of_x(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, metadata = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = sparse24_linear(onto, values, metadata, None, ctx.inputs, ctx.outputs)
    if ctx.needs_input_grad[1]:
        dvalues = backward_values(grad, onto, metadata)
    return dgrad, dvalues, None, None, None


def _save_values(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, metadata = inputs
    ctx.save_for_backward(grad, x, metadata)


def _backward_of_values(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, metadata = ctx.saved_tensors
    inputs, outputs = x.shape[1], grad.shape[1]
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = sparse24_linear(x, onto, metadata, None, inputs, outputs)
    if ctx.needs_input_grad[1]:
        dx = backward_x(grad, onto, metadata, inputs, outputs)
    return dgrad, dx, None


differentiate(sparse24_linear, _backward, _save)
differentiate(backward_x, _backward_of_x, _save_x)
differentiate(backward_values, _backward_of_values, _save_values)
