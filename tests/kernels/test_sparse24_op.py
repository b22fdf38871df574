"""The 2:4 operator on a CPU: values, gradients, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_kernels.ops import sparse24_linear
from esper_kernels.sparse24 import Sparse24, gather
from esper_kernels.sparse24_linear import cusparselt, reference
from tests.kernels.weights import two_of_four

DTYPES = [torch.float16, torch.bfloat16]
CLOSE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def arguments(
    samples: int, outputs: int, inputs: int, dtype: torch.dtype, *, bias: bool = True
) -> list[Any]:
    packed = Sparse24.pack(two_of_four(outputs, inputs, dtype))
    shift = torch.randn(outputs).to(dtype) if bias else None
    x = torch.randn(samples, inputs).to(dtype)
    return [x, packed.values, packed.metadata, shift, inputs, outputs]


def near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found.detach().double() - expected.double()).norm()
    assert float(error) <= CLOSE[found.dtype] * float(expected.double().norm())


@settings(max_examples=20)
@given(
    st.integers(0, 20), st.integers(1, 50), st.integers(1, 140), st.sampled_from(DTYPES),
    st.booleans(),
)  # fmt: skip
def test_values(samples: int, outputs: int, inputs: int, dtype: torch.dtype, bias: bool) -> None:
    given_to = arguments(samples, outputs, inputs, dtype, bias=bias)
    found = sparse24_linear(*given_to)
    assert found.dtype == dtype
    near(found, reference.forward(*given_to))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: torch.dtype) -> None:
    x, values, metadata, bias, inputs, outputs = arguments(12, 40, 100, dtype)
    weight = Sparse24(values, metadata, outputs, inputs).unpack().double()
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    found = sparse24_linear(x.view(3, 4, -1), values, metadata, bias, inputs, outputs)
    onto = torch.randn_like(found)
    dx, dvalues, dbias = torch.autograd.grad(found, leaves, onto)
    grad, wide = onto.view(12, -1).double(), x.detach().double()
    near(dx, grad @ weight)
    near(dvalues, gather(grad.T @ wide, metadata))
    near(dbias, grad.sum(0))
    grad = grad.to(dtype)
    near(reference.backward_x(grad, values.detach(), metadata, inputs, outputs), dx.detach())
    near(reference.backward_values(grad, x.detach(), metadata), dvalues)


def test_gradients_of_gradients() -> None:
    """The form is linear in each of grad, x and W, so twice the gradient of one is the others'."""
    x, values, metadata, _, inputs, outputs = arguments(4, 16, 64, torch.float16)
    leaves = [t.requires_grad_() for t in (x, values)]
    found = sparse24_linear(x, values, metadata, None, inputs, outputs)
    onto = torch.randn_like(found).requires_grad_()
    dx, dvalues = torch.autograd.grad(found, leaves, onto, create_graph=True)
    (twice,) = torch.autograd.grad((dx * x).sum() + (dvalues * values).sum(), onto)
    near(twice, 2 * found.detach())


def test_strided_arguments() -> None:
    x, values, metadata, bias, *sizes = arguments(6, 40, 100, torch.bfloat16)
    apart = [torch.stack([t, t], -1)[..., 0] for t in (x, values, metadata, bias)]
    assert torch.equal(
        sparse24_linear(*apart, *sizes), sparse24_linear(x, values, metadata, bias, *sizes)
    )


def test_opcheck() -> None:
    x, values, metadata, bias, *sizes = arguments(6, 40, 100, torch.float16)
    leaves = [t.requires_grad_() for t in (x, values, bias)]
    torch.library.opcheck(sparse24_linear, (leaves[0], leaves[1], metadata, leaves[2], *sizes))


@pytest.mark.parametrize(
    ("place", "other", "message"),
    [
        (0, torch.zeros(2, 100), "values must be torch.float32"),
        (0, torch.zeros(2, 99, dtype=torch.float16), "x must be of shape"),
        (1, torch.zeros(3, 2, 32, 8, dtype=torch.float16), "values must be of shape"),
        (2, torch.zeros(3, 2, 32), "metadata must be torch.int32"),
        (2, torch.zeros(3, 1, 32, dtype=torch.int32), "metadata must be of shape"),
        (3, torch.zeros(3, dtype=torch.float16), "bias must be of shape"),
    ],
)
def test_what_does_not_go_together_is_refused(place: int, other: Tensor, message: str) -> None:
    given_to = arguments(2, 40, 100, torch.float16)
    given_to[place] = other
    with pytest.raises(ValueError, match=message):
        sparse24_linear(*given_to)


def test_wide_dtypes_are_refused() -> None:
    given_to = arguments(2, 40, 100, torch.float16)
    given_to[:2] = [t.float() for t in given_to[:2]]
    with pytest.raises(ValueError, match="must be float16 or bfloat16"):
        sparse24_linear(*given_to)


def test_the_library_is_not_for_a_cpu() -> None:
    assert not cusparselt.fits(torch.zeros(100, 64, dtype=torch.float16), 64, 64)
