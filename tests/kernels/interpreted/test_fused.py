"""Gated products, low-rank pairs, and projections that store by head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from esper_kernels.attention_projections import triton as attention_projections
from esper_kernels.config import Config
from esper_kernels.gated_linear import triton as gated_linear
from esper_kernels.low_rank_linear import triton as low_rank_linear
from esper_kernels.run_sparse import RunSparse
from tests.kernels.interpreted.drawing import (
    CONFIGS,
    DTYPES,
    Case,
    cases,
    check_product,
    close,
    guarded,
    pattern,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
}
configs = st.sampled_from(CONFIGS)
unsplit = st.sampled_from([c for c in CONFIGS if c.split == 1])
# numpy's exp, which the interpreter calls, warns where the device's gives infinity, as it should
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def check_gated(out: Tensor, x: Tensor, gate: Tensor, up: Tensor, activation: str) -> None:
    x, gate, up = x.double(), gate.double(), up.double()
    left, right = x @ gate.T, x @ up.T
    expected = ACTIVATIONS[activation](left) * right
    # Errors of either product, times the other; activations have slopes up to 1.13.
    size = x.abs() @ gate.abs().T * right.abs() + (x.abs() @ up.abs().T) * left.abs().clamp(min=1)
    close(out, expected, 2 * size)


@settings(max_examples=16)
@given(cases(), unsplit, st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.booleans())
def test_gated_linear(
    case: Case, config: Config, activation: str, sparse: bool, alike: bool
) -> None:
    """Dense, sparse, and sparse with one pattern for both weights."""
    gate, up = case.packed, case.packed
    if not alike:
        outputs, inputs = case.weight.shape
        other = torch.randn(outputs, inputs) * pattern(outputs, inputs, gate.rows, gate.run, 2)
        up = RunSparse.pack(other.to(case.x.dtype), gate.rows, gate.run)
    if sparse:
        out = gated_linear.forward(
            case.x, gate.values, up.values, None, None, gate.index, up.index, activation,
            gate.rows, gate.run, config,
        )  # fmt: skip
    else:
        out = gated_linear.forward(
            case.x, gate.unpack(), up.unpack(), None, None, None, None, activation, None, None,
            config,
        )  # fmt: skip
    check_gated(out, case.x, gate.unpack(), up.unpack(), activation)


@settings(max_examples=10)
@given(cases(whole=True), unsplit, st.booleans())
def test_gated_linear_of_int8(case: Case, config: Config, sparse: bool) -> None:
    gate, scale = case.packed, case.scale
    up = RunSparse(gate.values.flip(0).contiguous(), gate.index, gate.rows, gate.run, gate.inputs)
    if sparse:
        out = gated_linear.forward(
            case.x, gate.values, up.values, scale, scale / 2, gate.index, gate.index, "silu",
            gate.rows, gate.run, config,
        )  # fmt: skip
    else:
        out = gated_linear.forward(
            case.x, gate.unpack(), up.unpack(), scale, scale / 2, None, None, "silu", None, None,
            config,
        )  # fmt: skip
    by_row = scale[:, None].double()
    check_gated(out, case.x, gate.unpack() * by_row, up.unpack() * by_row / 2, "silu")


@settings(max_examples=16)
@given(cases(), configs, st.integers(1, 40))
def test_low_rank_linear(case: Case, config: Config, rank: int) -> None:
    down = guarded(torch.randn(rank, case.x.shape[1]).to(case.x.dtype))
    up = guarded(torch.randn(len(case.weight), rank).to(case.x.dtype))
    out = low_rank_linear.forward(case.x, down, up, case.bias, config)
    inner = (case.x.double() @ down.double().T).to(case.x.dtype)  # rounded as between two layers
    check_product(out, inner, up, case.bias)


@settings(max_examples=10)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([(1, 5, 17, 4, 2, 8), (2, 7, 30, 3, 2, 12), (2, 1, 64, 2, 2, 16)]),
    unsplit,
    st.booleans(),
)
def test_attention_projections(
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int, int, int],
    config: Config,
    with_bias: bool,
) -> None:
    batch, length, inputs, heads, kv_heads, head_size = sizes
    x = guarded(torch.randn(batch, length, inputs).to(dtype))
    weight = guarded(torch.randn((heads + 2 * kv_heads) * head_size, inputs).to(dtype))
    bias = guarded(torch.randn(len(weight)).to(dtype)) if with_bias else None
    q, k, v = attention_projections.forward(x, weight, bias, heads, kv_heads, head_size, config)
    assert q.shape == (batch, heads, length, head_size)
    assert k.shape == v.shape == (batch, kv_heads, length, head_size)
    rows = torch.cat([t.transpose(1, 2).flatten(2) for t in (q, k, v)], 2)
    check_product(rows.flatten(0, 1), x.flatten(0, 1), weight, bias)
