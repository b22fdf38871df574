"""`esper::low_rank_linear` as an operator of PyTorch; its derivatives are the library's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn import functional

from esper_kernels.arguments import check_bias, check_dtype, check_input, check_matrix, flat
from esper_kernels.define import define, differentiate
from esper_kernels.low_rank_linear import cpu

_NAME = "esper::low_rank_linear"


def _shape(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    check_input(_NAME, x)
    for name, factor in (("down", down), ("up", up)):
        check_dtype(_NAME, name, factor, x.dtype)
    check_matrix(_NAME, "down", down, x.shape[-1])
    check_matrix(_NAME, "up", up, down.shape[0])
    check_bias(_NAME, bias, x, up.shape[0])
    return x.new_empty(*x.shape[:-1], up.shape[0])


def _compute(
    kernels: ModuleType, x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None
) -> Tensor:
    out: Tensor = kernels.forward(flat(x), down.contiguous(), up.contiguous(), bias)
    return out.reshape(*x.shape[:-1], len(up))


low_rank_linear = define("low_rank_linear", _shape, _compute, cpu)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, down, up, _ = inputs
    ctx.save_for_backward(x, down, up)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, down, up = ctx.saved_tensors
    for_x, for_down, for_up, for_bias = ctx.needs_input_grad
    rows, samples = grad.reshape(-1, up.shape[0]), x.reshape(-1, x.shape[-1])
    dx = ddown = dup = None
    if for_x or for_down:
        dhidden = rows @ up
        if for_x:
            dx = (dhidden @ down).reshape(x.shape)
        if for_down:
            ddown = dhidden.t() @ samples
    if for_up:
        dup = rows.t() @ functional.linear(samples, down)
    return dx, ddown, dup, rows.sum(0) if for_bias else None


differentiate(low_rank_linear, _backward, _save)
