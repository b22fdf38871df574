"""`esper::vnm_int8_linear` and its derivative as operators of PyTorch.

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
    check_runs,
    flat,
    untrained,
)
from esper_kernels.define import define, differentiate
from esper_kernels.vnm_int8_linear import cpu

_NAME = "esper::vnm_int8_linear"


# -- forward ---------------------------------------------------------------------------------------


def check(
    op: str,
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> None:
    """Arguments go together."""
    check_input(op, x)
    check_int8(op, values, scale)
    check_runs(op, values, index, rows, run, x.shape[-1])
    check_bias(op, bias, x, values.shape[0])


def _shape(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    check(_NAME, x, values, scale, index, bias, rows, run)
    return x.new_empty(*x.shape[:-1], values.shape[0])


def compute(
    kernels: ModuleType,
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    """The operator with the functions of one device."""
    out: Tensor = kernels.forward(
        flat(x), values.contiguous(), scale, index.contiguous(), bias, rows, run
    )
    return out.reshape(*x.shape[:-1], len(values))


vnm_int8_linear = define("vnm_int8_linear", _shape, compute, cpu)


# -- gradient of x ---------------------------------------------------------------------------------


def _shape_x(
    grad: Tensor, values: Tensor, scale: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    check_int8(_NAME, values, scale)
    check_matrix(_NAME, "grad", grad, values.shape[0])
    check_runs(_NAME, values, index, rows, run, inputs)
    return grad.new_empty(grad.shape[0], inputs)


def _compute_x(
    kernels: ModuleType,
    grad: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    rows: int,
    run: int,
    inputs: int,
) -> Tensor:
    out: Tensor = kernels.backward_x(
        grad.contiguous(), values.contiguous(), scale, index.contiguous(), rows, run, inputs
    )
    return out


backward_x = define("vnm_int8_linear_backward_x", _shape_x, _compute_x, cpu)


# -- autograd --------------------------------------------------------------------------------------


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradient of x needs, which is not x."""
    x, values, scale, index, _, ctx.rows, ctx.run = inputs
    untrained(_NAME, scale)
    ctx.inputs = x.shape[-1]
    ctx.save_for_backward(values, scale, index)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and bias."""
    values, scale, index = ctx.saved_tensors
    rows = grad.reshape(-1, values.shape[0])
    dx = None
    if ctx.needs_input_grad[0]:
        dx = backward_x(rows, values, scale, index, ctx.rows, ctx.run, ctx.inputs)
        dx = dx.reshape(*grad.shape[:-1], ctx.inputs)
    return dx, None, None, None, rows.sum(0) if ctx.needs_input_grad[4] else None, None, None


def _save_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, scale, index, ctx.rows, ctx.run, _ = inputs
    untrained(_NAME, scale)
    ctx.save_for_backward(values, scale, index)


def _backward_of_x(ctx: Any, onto: Tensor) -> tuple[Tensor | None, ...]:
    values, scale, index = ctx.saved_tensors
    dgrad = vnm_int8_linear(onto, values, scale, index, None, ctx.rows, ctx.run)
    return dgrad, None, None, None, None, None, None


differentiate(vnm_int8_linear, backward, save)
differentiate(backward_x, _backward_of_x, _save_x)
