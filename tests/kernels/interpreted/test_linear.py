"""Products with dense, run-sparse and int8 weights, and their derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_kernels.config import Config
from esper_kernels.int8_linear import triton as int8_linear
from esper_kernels.run_sparse import RunSparse, columns
from esper_kernels.vnm_int8_linear import triton as vnm_int8_linear
from esper_kernels.vnm_linear import triton as vnm_linear
from tests.kernels.interpreted.drawing import CONFIGS, Case, cases, check_product, guarded

configs = st.sampled_from(CONFIGS)
unsplit = st.sampled_from([c for c in CONFIGS if c.split == 1 and not c.swap])


@settings(max_examples=30)
@given(cases(), configs)
def test_vnm_linear(case: Case, config: Config) -> None:
    p = case.packed
    out = vnm_linear.forward(case.x, p.values, p.index, case.bias, p.rows, p.run, config)
    check_product(out, case.x, case.weight, case.bias)


@settings(max_examples=12)
@given(cases(whole=True), configs)
def test_int8_linear(case: Case, config: Config) -> None:
    out = int8_linear.forward(case.x, case.weight, case.scale, case.bias, config)
    check_product(out, case.x, case.weight * case.scale[:, None].double(), case.bias)


@settings(max_examples=12)
@given(cases(whole=True), configs)
def test_vnm_int8_linear(case: Case, config: Config) -> None:
    p = case.packed
    out = vnm_int8_linear.forward(
        case.x, p.values, case.scale, p.index, case.bias, p.rows, p.run, config
    )
    check_product(out, case.x, case.weight * case.scale[:, None].double(), case.bias)


@settings(max_examples=15)
@given(cases(), unsplit)
def test_gradient_of_x(case: Case, config: Config) -> None:
    p = case.packed
    out = vnm_linear.backward_x(case.grad, p.values, p.index, p.rows, p.run, p.inputs, config)
    check_product(out, case.grad, case.weight.T)


@settings(max_examples=10)
@given(cases(whole=True), unsplit)
def test_gradient_of_x_through_int8(case: Case, config: Config) -> None:
    p = case.packed
    weight = (case.weight * case.scale[:, None]).to(case.x.dtype)  # rounded as the kernel does
    dense = int8_linear.backward_x(case.grad, case.weight, case.scale, config)
    check_product(dense, case.grad, weight.T)
    sparse = vnm_int8_linear.backward_x(
        case.grad, p.values, case.scale, p.index, p.rows, p.run, p.inputs, config
    )
    check_product(sparse, case.grad, weight.T)


@settings(max_examples=15)
@given(cases(), unsplit)
def test_gradient_of_values(case: Case, config: Config) -> None:
    """Also for runs of zeros that fill a group up; nothing for columns beyond the last."""
    p = case.packed
    out = vnm_linear.backward_values(case.grad, case.x, p.index, p.rows, p.run, config)
    group = torch.arange(len(p.values)) // p.rows
    column = columns(p.index, p.run)[group]
    wide = torch.nn.functional.pad(case.x, (0, -p.inputs % p.run))
    for row in range(len(out)):
        check_product(out[row : row + 1], case.grad.T[row : row + 1], wide.T[column[row]])


@pytest.mark.parametrize("tokens", [1, 16, 40])
def test_the_config_that_is_chosen_computes_the_same(tokens: int) -> None:
    x, weight = guarded(torch.randn(tokens, 96)), torch.randn(48, 96)
    weight[:, 32:64] = 0
    p = RunSparse.pack(weight, 16, 32)
    out = vnm_linear.forward(x, p.values, p.index, None, p.rows, p.run)
    check_product(out, x, weight)


def test_numbers_that_no_kept_weight_meets_do_not_matter() -> None:
    """x may hold NaN where a group reads nothing: it is not multiplied by zero."""
    weight = torch.zeros(16, 40)
    weight[:, 16:24] = torch.randn(16, 8)
    p = RunSparse.pack(weight, 16, 8)
    x = torch.full((3, 40), float("nan"))
    x[:, 16:24] = torch.randn(3, 8)
    out = vnm_linear.forward(guarded(x), p.values, p.index, None, 16, 8, Config(16, 16, 16))
    check_product(out, x.nan_to_num(), weight)


def test_float64_is_refused() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    index = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="float64 has no kernel"):
        vnm_linear.forward(x, x, index, None, 2, 8, Config(16, 16, 16))
