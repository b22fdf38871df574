"""`esper::attention_projections` as an operator of PyTorch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from esper_kernels.arguments import check_bias, check_dtype, check_input, check_shape
from esper_kernels.attention_projections import cpu
from esper_kernels.define import define, differentiate

_NAME = "esper::attention_projections"


def _shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, kv_heads: int, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    check_input(_NAME, x)
    if x.ndim != 3 or min(heads, kv_heads, head_size) < 1:
        raise ValueError(
            f"{_NAME}: x must be (batch, sequence, inputs) and heads, kv_heads and head_size at "
            f"least 1, they are {tuple(x.shape)}, {heads}, {kv_heads} and {head_size}"
        )
    outputs = (heads + 2 * kv_heads) * head_size
    check_dtype(_NAME, "weight", weight, x.dtype)
    check_shape(_NAME, "weight", weight, (outputs, x.shape[2]))
    check_bias(_NAME, bias, x, outputs)
    batch, sequence, _ = x.shape
    return (
        x.new_empty(batch, heads, sequence, head_size),
        x.new_empty(batch, kv_heads, sequence, head_size),
        x.new_empty(batch, kv_heads, sequence, head_size),
    )


def _compute(
    kernels: ModuleType,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    head_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = kernels.forward(x.contiguous(), weight.contiguous(), bias, heads, kv_heads, head_size)
    return q, k, v


attention_projections = define("attention_projections", _shape, _compute, cpu)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, *_ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
    rows = torch.cat(grads, 1).transpose(1, 2).reshape(-1, weight.shape[0])
    return (
        (rows @ weight).reshape(x.shape) if for_x else None,
        rows.t() @ x.reshape(-1, x.shape[2]) if for_weight else None,
        rows.sum(0) if for_bias else None,
        None,
        None,
        None,
    )


differentiate(attention_projections, _backward, _save)
