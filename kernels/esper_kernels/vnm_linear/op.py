"""`esper::vnm_linear` and its derivatives as operators of PyTorch.

The three are the partial derivatives of one trilinear form, sum of grad * (x W^T), so each is
differentiated by the two others, to any order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from esper_kernels.arguments import (
    check_bias,
    check_dtype,
    check_input,
    check_runs,
    check_shape,
    flat,
)
from esper_kernels.on_gpu import triton_of
from esper_kernels.vnm_linear import cpu

NAME = "esper::vnm_linear"


def _check(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> None:
    check_input(NAME, x)
    check_dtype(NAME, "values", values, x.dtype)
    check_runs(NAME, values, index, rows, run, x.shape[-1])
    check_bias(NAME, bias, x, values.shape[0])


# -- forward ---------------------------------------------------------------------------------------


@custom_op(NAME, mutates_args=(), device_types="cuda")
def vnm_linear(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    """x W^T + bias for W packed as `RunSparse`: (..., K) to (..., N).

    Raises:
        ValueError: where shapes or dtypes do not go together.
    """
    _check(x, values, index, bias, rows, run)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], len(values))
    out: Tensor = triton_of("vnm_linear").forward(
        flat(x), values.contiguous(), index.contiguous(), bias, rows, run
    )
    return out.reshape(*x.shape[:-1], len(values))


@vnm_linear.register_kernel("cpu")
def _(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int) -> Tensor:
    _check(x, values, index, bias, rows, run)
    if x.numel() == 0:
        return x.new_empty(*x.shape[:-1], len(values))
    out = cpu.forward(flat(x), values, index, bias, rows, run)
    return out.reshape(*x.shape[:-1], len(values))


@vnm_linear.register_fake
def _(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int) -> Tensor:
    _check(x, values, index, bias, rows, run)
    return x.new_empty(*x.shape[:-1], values.shape[0])


# -- gradient of x ---------------------------------------------------------------------------------


@custom_op(f"{NAME}_backward_x", mutates_args=(), device_types="cuda")
def backward_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """grad W: (M, N) to (M, inputs)."""
    if len(grad) == 0:
        return grad.new_empty(0, inputs)
    out: Tensor = triton_of("vnm_linear").backward_x(
        grad.contiguous(), values.contiguous(), index.contiguous(), rows, run, inputs
    )
    return out


@backward_x.register_kernel("cpu")
def _(grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int) -> Tensor:
    if len(grad) == 0:
        return grad.new_empty(0, inputs)
    return cpu.backward_x(grad.contiguous(), values, index, rows, run, inputs)


@backward_x.register_fake
def _(grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int) -> Tensor:
    check_shape(NAME, "grad", grad, (grad.shape[0], values.shape[0]))
    return grad.new_empty(grad.shape[0], inputs)


# -- gradient of values ----------------------------------------------------------------------------


@custom_op(f"{NAME}_backward_values", mutates_args=(), device_types="cuda")
def backward_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """grad^T x at the kept weights: (M, N), (M, K) to (N, kept * run)."""
    if len(grad) == 0:
        return grad.new_zeros(grad.shape[1], index.shape[1] * run)
    out: Tensor = triton_of("vnm_linear").backward_values(
        grad.contiguous(), x.contiguous(), index.contiguous(), rows, run
    )
    return out


@backward_values.register_kernel("cpu")
def _(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    if len(grad) == 0:
        return grad.new_zeros(grad.shape[1], index.shape[1] * run)
    return cpu.backward_values(grad.contiguous(), x.contiguous(), index, rows, run)


@backward_values.register_fake
def _(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    check_shape(NAME, "x", x, (grad.shape[0], x.shape[1]))
    return grad.new_empty(grad.shape[1], index.shape[1] * run)


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, bias, ctx.rows, ctx.run = inputs
    ctx.save_for_backward(x, values, index)
    ctx.bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    for_x, for_values, _, for_bias, *_ = ctx.needs_input_grad
    rows = grad.reshape(-1, values.shape[0])
    dx = dvalues = None
    if for_x:
        dx = backward_x(rows, values, index, ctx.rows, ctx.run, x.shape[-1]).reshape(x.shape)
    if for_values:
        dvalues = backward_values(rows, x.reshape(-1, x.shape[-1]), index, ctx.rows, ctx.run)
    return dx, dvalues, None, rows.sum(0) if ctx.bias and for_bias else None, None, None


def _save_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, index, ctx.rows, ctx.run, _ = inputs
    ctx.save_for_backward(grad, values, index)


def _backward_of_x(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, index = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = vnm_linear(onto, values, index, None, ctx.rows, ctx.run)
    if ctx.needs_input_grad[1]:
        dvalues = backward_values(grad, onto, index, ctx.rows, ctx.run)
    return dgrad, dvalues, None, None, None, None


def _save_values(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, index, ctx.rows, ctx.run = inputs
    ctx.save_for_backward(grad, x, index)


def _backward_of_values(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, index = ctx.saved_tensors
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = vnm_linear(x, onto, index, None, ctx.rows, ctx.run)
    if ctx.needs_input_grad[1]:
        dx = backward_x(grad, onto, index, ctx.rows, ctx.run, x.shape[1])
    return dgrad, dx, None, None, None


vnm_linear.register_autograd(_backward, setup_context=_save)
backward_x.register_autograd(_backward_of_x, setup_context=_save_x)
backward_values.register_autograd(_backward_of_values, setup_context=_save_values)
