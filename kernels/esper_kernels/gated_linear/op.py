"""`esper::gated_linear` as an operator of PyTorch.

The gradient computes both products again, by the operators of the weights' format, and is made of
theirs: neither product is kept between forward and backward.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from esper_kernels.activations import ACTIVATIONS
from esper_kernels.arguments import (
    check_dtype,
    check_input,
    check_int8,
    check_matrix,
    check_runs,
    check_shape,
    flat,
    untrained,
)
from esper_kernels.define import define, differentiate
from esper_kernels.gated_linear import cpu
from esper_kernels.gated_linear.product import Weight

_NAME = "esper::gated_linear"


def _shape(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_scale: Tensor | None,
    up_scale: Tensor | None,
    gate_index: Tensor | None,
    up_index: Tensor | None,
    activation: str,
    rows: int | None,
    run: int | None,
) -> Tensor:
    check_input(_NAME, x)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{_NAME}: activation must be one of {', '.join(ACTIVATIONS)}, it is {activation!r}"
        )
    if (gate_scale is None) != (up_scale is None) or (gate_index is None) != (up_index is None):
        raise ValueError(
            f"{_NAME}: gate and up must be of the same format, with or without scale and index"
        )
    for name, weight, scale, index in (
        ("gate", gate, gate_scale, gate_index),
        ("up", up, up_scale, up_index),
    ):
        if scale is None:
            check_dtype(_NAME, name, weight, x.dtype)
        else:
            check_int8(_NAME, weight, scale)
        if index is None:
            check_matrix(_NAME, name, weight, x.shape[-1])
        elif rows is None or run is None:
            raise ValueError(f"{_NAME}: weights with an index need rows and run")
        else:
            check_runs(_NAME, weight, index, rows, run, x.shape[-1])
        check_shape(_NAME, name, weight, (gate.shape[0], weight.shape[1]))
    return x.new_empty(*x.shape[:-1], gate.shape[0])


def _compute(kernels: ModuleType, x: Tensor, *arguments: Any) -> Tensor:
    packed = (a.contiguous() if isinstance(a, Tensor) else a for a in arguments)
    out: Tensor = kernels.forward(flat(x), *packed)
    return out.reshape(*x.shape[:-1], out.shape[1])


gated_linear = define("gated_linear", _shape, _compute, cpu)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.rows, ctx.run = inputs
    untrained(_NAME, tensors[3], tensors[4])
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, up, gate_scale, up_scale, gate_index, up_index = ctx.saved_tensors
    for_x, for_gate, for_up, *_ = ctx.needs_input_grad
    first = Weight(gate, gate_scale, gate_index, ctx.rows, ctx.run)
    second = Weight(up, up_scale, up_index, ctx.rows, ctx.run)
    samples, rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, gate.shape[0])
    act, gated = ACTIVATIONS[ctx.activation], first.times(samples)
    dgated = act.backward(rows * second.times(samples), gated)
    dsecond = rows * act.forward(gated)
    dx = None
    if for_x:
        dx = first.transposed_times(dgated, x.shape[-1])
        dx = (dx + second.transposed_times(dsecond, x.shape[-1])).reshape(x.shape)
    dgate = first.gradient(dgated, samples) if for_gate else None
    dup = second.gradient(dsecond, samples) if for_up else None
    return dx, dgate, dup, *(None,) * 7


differentiate(gated_linear, _backward, _save)
