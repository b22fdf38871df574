"""`esper::sparse24_linear` and its derivatives as operators of PyTorch.

The three are the partial derivatives of one trilinear form, sum of grad * (x W^T), so each is
differentiated by the two others, to any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from esper_kernels.arguments import check_bias, check_dtype, check_shape, flat
from esper_kernels.on_gpu import triton_of
from esper_kernels.sparse24 import COLUMNS, DTYPES, ROWS
from esper_kernels.sparse24_linear import dense

NAME = "esper::sparse24_linear"


def _check(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> None:
    if x.ndim < 1 or x.dtype not in DTYPES:
        raise ValueError(
            f"{NAME}: x must be (..., inputs) of float16 or bfloat16, it is {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )
    check_shape(NAME, "x", x, (*x.shape[:-1], inputs))
    check_dtype(NAME, "values", values, x.dtype)
    check_dtype(NAME, "metadata", metadata, torch.int32)
    rows, pairs = -(-outputs // ROWS), -(-inputs // (2 * COLUMNS))
    check_shape(NAME, "values", values, (rows, 2 * pairs, 32, 8))
    check_shape(NAME, "metadata", metadata, (rows, pairs, 32))
    check_bias(NAME, bias, x, outputs)


# -- forward ---------------------------------------------------------------------------------------


@custom_op(NAME, mutates_args=(), device_types="cuda")
def sparse24_linear(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    """x W^T + bias for W packed as `Sparse24`: (..., inputs) to (..., outputs).

    Raises:
        ValueError: where shapes or dtypes do not go together.
    """
    _check(x, values, metadata, bias, inputs, outputs)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], outputs)
    out: Tensor = triton_of("sparse24_linear").forward(
        flat(x), values.contiguous(), metadata.contiguous(), bias, inputs, outputs
    )
    return out.reshape(*x.shape[:-1], outputs)


@sparse24_linear.register_kernel("cpu")
def _(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    _check(x, values, metadata, bias, inputs, outputs)
    out = dense.forward(flat(x), values, metadata, bias, inputs, outputs)
    return out.reshape(*x.shape[:-1], outputs)


@sparse24_linear.register_fake
def _(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    _check(x, values, metadata, bias, inputs, outputs)
    return x.new_empty(*x.shape[:-1], outputs)


# -- gradients -------------------------------------------------------------------------------------


@custom_op(f"{NAME}_backward_x", mutates_args=())
def backward_x(grad: Tensor, values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    """grad W: (M, outputs) to (M, inputs)."""
    return dense.backward_x(grad, values, metadata, inputs, outputs)


@backward_x.register_fake
def _(grad: Tensor, values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    return grad.new_empty(grad.shape[0], inputs)


@custom_op(f"{NAME}_backward_values", mutates_args=())
def backward_values(grad: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    """grad^T x at the kept weights: (M, outputs), (M, inputs) to the shape of `values`."""
    return dense.backward_values(grad, x, metadata)


@backward_values.register_fake
def _(grad: Tensor, x: Tensor, metadata: Tensor) -> Tensor:
    rows, pairs = metadata.shape[:2]
    return grad.new_empty(rows, 2 * pairs, 32, 8)


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, metadata, bias, ctx.inputs, ctx.outputs = inputs
    ctx.save_for_backward(x, values, metadata)
    ctx.bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, metadata = ctx.saved_tensors
    for_x, for_values, _, for_bias, *_ = ctx.needs_input_grad
    rows = grad.reshape(-1, ctx.outputs)
    dx = dvalues = None
    if for_x:
        dx = backward_x(rows, values, metadata, ctx.inputs, ctx.outputs).reshape(x.shape)
    if for_values:
        dvalues = backward_values(rows, x.reshape(-1, ctx.inputs), metadata)
    return dx, dvalues, None, rows.sum(0) if ctx.bias and for_bias else None, None, None


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


sparse24_linear.register_autograd(_backward, setup_context=_save)
backward_x.register_autograd(_backward_of_x, setup_context=_save_x)
backward_values.register_autograd(_backward_of_values, setup_context=_save_values)
