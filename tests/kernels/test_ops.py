"""Every operator on a CPU against its reference: values, gradients, sizes, dtypes, strides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_kernels import ops
from tests.kernels.problems import PROBLEMS, Problem, Sizes

EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
SMOOTH_ONES = {name: problem for name, problem in PROBLEMS.items() if problem.smooth}
SMOOTH = pytest.mark.parametrize("problem", SMOOTH_ONES.values(), ids=SMOOTH_ONES)
# Results are about 1 in size. Two-byte types are rounded more than once on the way.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def agree(found: Any, expected: Any) -> None:
    for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.is_contiguous()
        tolerance = TOLERANCES[ours.dtype]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


SIZES = st.builds(
    Sizes,
    samples=st.sampled_from([1, 2, 7, 8, 33, 130]),
    inputs=st.integers(16, 100),
    outputs=st.integers(1, 80),
    rows=st.sampled_from([1, 3, 16, 64]),
    run=st.sampled_from([1, 2, 8, 16]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    bias=st.booleans(),
)


@EACH
@settings(max_examples=50)
@given(sizes=SIZES, dtype=st.sampled_from(list(TOLERANCES)))
def test_values(problem: Problem, sizes: Sizes, dtype: torch.dtype) -> None:
    arguments = problem.arguments(sizes, dtype)
    agree(problem.op(*arguments), problem.reference(*arguments))


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_than_a_piece_of_cache(problem: Problem, dtype: torch.dtype) -> None:
    sizes = Sizes(samples=300, inputs=1504, outputs=150, rows=32, run=16)
    arguments = problem.arguments(sizes, dtype)
    agree(problem.op(*arguments), problem.reference(*arguments))


@EACH
def test_strides(problem: Problem) -> None:
    x, *weights = problem.arguments(Sizes(), torch.float32)
    spread = torch.randn(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    turned = torch.randn(x.mT.shape).mT
    apart = [torch.stack([t, t], -1)[..., 0] if isinstance(t, Tensor) else t for t in weights]
    for strided in (spread, turned):
        agree(problem.op(strided, *apart), problem.reference(strided, *weights))


@EACH
def test_leading_dims(problem: Problem) -> None:
    if problem.dims != 2:
        pytest.skip("three dims always")
    x, *weights = problem.arguments(Sizes(samples=12), torch.float32)
    expected = problem.reference(x, *weights)
    agree(problem.op(x.view(2, 3, 2, -1), *weights), expected.view(2, 3, 2, -1))
    agree(problem.op(x[0], *weights), expected[0])


@SMOOTH
@pytest.mark.parametrize("samples", [0, 1])
def test_few_samples(problem: Problem, samples: int) -> None:
    arguments = problem.trainable(Sizes(samples=samples), torch.float32)
    found, expected = problem.op(*arguments), problem.reference(*arguments)
    agree(found, expected)
    leaves = [arguments[position] for position in problem.trains]
    ours = torch.autograd.grad([t.square().sum() for t in outputs(found)], leaves)
    theirs = torch.autograd.grad([t.square().sum() for t in outputs(expected)], leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@SMOOTH
@pytest.mark.parametrize("sizes", [Sizes(3, 13, 10, 4, 3), Sizes(2, 8, 5, 16, 1, bias=False)])
def test_gradients(problem: Problem, sizes: Sizes) -> None:
    arguments = problem.trainable(sizes, torch.float64)
    assert torch.autograd.gradcheck(problem.op, arguments)
    assert torch.autograd.gradgradcheck(problem.op, arguments, fast_mode=True)


@SMOOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_narrow_types(problem: Problem, dtype: torch.dtype) -> None:
    arguments = problem.trainable(Sizes(samples=16), dtype)
    wide = [
        a.detach().double().requires_grad_(a.requires_grad)
        if isinstance(a, Tensor) and a.dtype == dtype and a.requires_grad
        else a
        for a in arguments
    ]
    wide = [a.double() if isinstance(a, Tensor) and a.dtype == dtype else a for a in wide]
    ours = [arguments[position] for position in problem.trains if arguments[position] is not None]
    leaves = [wide[position] for position in problem.trains if wide[position] is not None]
    directions = [torch.randn_like(t) for t in outputs(problem.op(*arguments))]
    found = torch.autograd.grad(outputs(problem.op(*arguments)), ours, directions)
    expected = torch.autograd.grad(
        outputs(problem.reference(*wide)), leaves, [d.double() for d in directions]
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).norm() / other.norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]


def test_rounding_is_passed_straight_through() -> None:
    arguments = PROBLEMS["vnm_dynamic_linear"].trainable(Sizes(), torch.float64)
    leaves = [arguments[0], arguments[4]]
    direction = torch.randn(5, 20, dtype=torch.float64)
    ours = torch.autograd.grad(ops.vnm_dynamic_linear(*arguments), leaves, direction)
    theirs = torch.autograd.grad(ops.vnm_int8_linear(*arguments), leaves, direction)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [1e-13, 1e-12, 1e-11, 1e-9])
def test_rows_of_tiny_numbers_are_rounded_as_others(size: float) -> None:
    arguments = PROBLEMS["vnm_dynamic_linear"].arguments(Sizes(bias=False), torch.float32)
    arguments[0].mul_(size)
    x, *weights = arguments
    whole = torch.eye(x.shape[-1])  # each input by itself, where the layer of calls rounds it so
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    rounded = (x / step).round() * step
    expected = rounded.double() @ ops.vnm_int8_linear(whole, *weights).double()
    found = ops.vnm_dynamic_linear(x, *weights).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize("samples", [0, 4])
def test_no_inputs_of_size(samples: int) -> None:
    """Rows of zeros are rounded to zeros."""
    arguments = PROBLEMS["vnm_dynamic_linear"].arguments(Sizes(samples=samples), torch.float32)
    arguments[0].zero_()
    assert torch.equal(ops.vnm_dynamic_linear(*arguments), arguments[4].expand(samples, -1))


@EACH
@pytest.mark.parametrize("samples", [1, 6])
def test_results_share_no_memory(problem: Problem, samples: int) -> None:
    arguments = problem.arguments(Sizes(samples=samples), torch.float32)
    found = outputs(problem.op(*arguments))
    given = [t for t in arguments if isinstance(t, Tensor)]
    before = [t.clone() for t in given]
    storages = [t.untyped_storage().data_ptr() for t in (*found, *given)]
    assert len(set(storages)) == len(storages)
    for result in found:
        result.fill_(7)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


@EACH
@pytest.mark.parametrize("samples", [1, 16, 200])
def test_one_input(problem: Problem, samples: int) -> None:
    """A matrix of one column lies as its transpose does."""
    arguments = problem.arguments(Sizes(samples, inputs=1, run=1, density=1), torch.float32)
    agree(problem.op(*arguments), problem.reference(*arguments))


@pytest.mark.parametrize("samples", [0, 3])
def test_no_inputs_at_all(samples: int) -> None:
    x, bias = torch.empty(samples, 0), torch.arange(4.0)
    values, scale = torch.empty(4, 0, dtype=torch.int8), torch.ones(4)
    assert torch.equal(ops.int8_linear(x, values, scale, bias), bias.expand(samples, 4))
    assert torch.equal(ops.int8_linear(x, values, scale, None), torch.zeros(samples, 4))
    down, up = torch.empty(2, 0), torch.randn(4, 2)
    assert torch.equal(ops.low_rank_linear(x, down, up, bias), bias.expand(samples, 4))


@EACH
def test_autocast(problem: Problem) -> None:
    """Types are those of a layer of PyTorch's own, and gradients those of what was given."""
    arguments = problem.trainable(Sizes(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = outputs(problem.op(*arguments))
    for one, other in zip(found, outputs(problem.reference(*arguments)), strict=True):
        assert one.dtype == (torch.bfloat16 if problem.autocast else torch.float32)
        torch.testing.assert_close(one.float(), other, rtol=6e-2, atol=6e-2)
    leaves = [arguments[position] for position in problem.trains]
    for leaf, gradient in zip(
        leaves, torch.autograd.grad([t.sum() for t in found], leaves), strict=True
    ):
        assert gradient.dtype == leaf.dtype


@EACH
def test_the_same_bits_again(problem: Problem) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            torch.manual_seed(1)
            arguments = problem.trainable(Sizes(samples=40), torch.float32)
            found = outputs(problem.op(*arguments))
            leaves = [arguments[position] for position in problem.trains]
            runs.append([*found, *torch.autograd.grad([t.sum() for t in found], leaves)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
