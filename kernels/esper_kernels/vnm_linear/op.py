"""`esper::vnm_linear` and its derivatives as operators of PyTorch.

The three are the partial derivatives of one trilinear form, the sum of grad * (x W^T), so each is
differentiated by the two others, to any order.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from esper_kernels.arguments import (
    check_bias,
    check_dtype,
    check_input,
    check_matrix,
    check_runs,
    flat,
)
from esper_kernels.define import define, differentiate
from esper_kernels.vnm_linear import cpu

_NAME = "esper::vnm_linear"


# -- forward ---------------------------------------------------------------------------------------


def _shape(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    check_input(_NAME, x)
    check_dtype(_NAME, "values", values, x.dtype)
    check_runs(_NAME, values, index, rows, run, x.shape[-1])
    check_bias(_NAME, bias, x, values.shape[0])
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _compute(
    kernels: ModuleType,
    x: Tensor,
    values: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    out: Tensor = kernels.forward(flat(x), values.contiguous(), index.contiguous(), bias, rows, run)
    return out.reshape(*x.shape[:-1], len(values))


vnm_linear = define("vnm_linear", _shape, _compute, cpu)


# -- gradient of x ---------------------------------------------------------------------------------


def _shape_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    check_dtype(_NAME, "grad", grad, values.dtype)
    check_matrix(_NAME, "grad", grad, values.shape[0])
    check_runs(_NAME, values, index, rows, run, inputs)
    return grad.new_empty(grad.shape[0], inputs)


def _compute_x(
    kernels: ModuleType,
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    rows: int,
    run: int,
    inputs: int,
) -> Tensor:
    out: Tensor = kernels.backward_x(
        grad.contiguous(), values.contiguous(), index.contiguous(), rows, run, inputs
    )
    return out


backward_x = define("vnm_linear_backward_x", _shape_x, _compute_x, cpu)


# -- gradient of values ----------------------------------------------------------------------------


def _shape_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    check_dtype(_NAME, "grad", grad, x.dtype)
    check_matrix(_NAME, "grad", grad, grad.shape[-1])
    values = grad.new_empty(grad.shape[1], index.shape[1] * run)
    check_runs(_NAME, values, index, rows, run, x.shape[1])
    return values


def _compute_values(
    kernels: ModuleType, grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int
) -> Tensor:
    out: Tensor = kernels.backward_values(
        grad.contiguous(), x.contiguous(), index.contiguous(), rows, run
    )
    return out


backward_values = define("vnm_linear_backward_values", _shape_values, _compute_values, cpu)


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, index, _, ctx.rows, ctx.run = inputs
    ctx.save_for_backward(x, values, index)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, index = ctx.saved_tensors
    for_x, for_values, _, for_bias, *_ = ctx.needs_input_grad
    rows = grad.reshape(-1, values.shape[0])
    dx = dvalues = None
    if for_x:
        dx = backward_x(rows, values, index, ctx.rows, ctx.run, x.shape[-1]).reshape(x.shape)
    if for_values:
        dvalues = backward_values(rows, x.reshape(-1, x.shape[-1]), index, ctx.rows, ctx.run)
    return dx, dvalues, None, rows.sum(0) if for_bias else None, None, None


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


differentiate(vnm_linear, _backward, _save)
differentiate(backward_x, _backward_of_x, _save_x)
differentiate(backward_values, _backward_of_values, _save_values)
