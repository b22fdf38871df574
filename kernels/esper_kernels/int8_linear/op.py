"""`esper::int8_linear` and its derivative as operators of PyTorch.

They are linear in x and in grad and each other's transpose, so each differentiates the other.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from esper_kernels.arguments import (
    check_bias,
    check_input,
    check_int8,
    check_matrix,
    flat,
    untrained,
)
from esper_kernels.define import define, differentiate
from esper_kernels.int8_linear import cpu

_NAME = "esper::int8_linear"


# -- forward ---------------------------------------------------------------------------------------


def _shape(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    check_input(_NAME, x)
    check_int8(_NAME, values, scale)
    check_matrix(_NAME, "values", values, x.shape[-1])
    check_bias(_NAME, bias, x, values.shape[0])
    return x.new_empty(*x.shape[:-1], values.shape[0])


def _compute(
    kernels: ModuleType, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    out: Tensor = kernels.forward(flat(x), values.contiguous(), scale, bias)
    return out.reshape(*x.shape[:-1], len(values))


int8_linear = define("int8_linear", _shape, _compute, cpu)


# -- gradient of x ---------------------------------------------------------------------------------


def _shape_x(grad: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    check_int8(_NAME, values, scale)
    check_matrix(_NAME, "grad", grad, values.shape[0])
    return grad.new_empty(grad.shape[0], values.shape[1])


def _compute_x(kernels: ModuleType, grad: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    out: Tensor = kernels.backward_x(grad.contiguous(), values.contiguous(), scale)
    return out


backward_x = define("int8_linear_backward_x", _shape_x, _compute_x, cpu)


# -- autograd --------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, scale, _ = inputs
    untrained(_NAME, scale)
    ctx.save_for_backward(values, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, scale = ctx.saved_tensors
    rows = grad.reshape(-1, values.shape[0])
    dx = None
    if ctx.needs_input_grad[0]:
        dx = backward_x(rows, values, scale).reshape(*grad.shape[:-1], values.shape[1])
    return dx, None, None, rows.sum(0) if ctx.needs_input_grad[3] else None


def _save_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, scale = inputs
    untrained(_NAME, scale)
    ctx.save_for_backward(values, scale)


def _backward_of_x(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    values, scale = ctx.saved_tensors
    return int8_linear(onto, values, scale, None), None, None


differentiate(int8_linear, _backward, _save)
differentiate(backward_x, _backward_of_x, _save_x)
