"""Products of odd sizes, in memory where a read beyond a tensor's end finds NaN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.run_sparse import RunSparse

DTYPES = (torch.float32, torch.float16)
# Sums are in float32; results are rounded once, gated ones of float16 from exact products.
CLOSE = {torch.float32: 1e-6, torch.float16: 1e-3}
# The interpreter takes tiles of any size; small ones leave several programs and steps to small
# tensors.
CONFIGS = (
    Config(16, 16, 16),
    Config(16, 16, 32, swap=True),
    Config(32, 16, 16),
    Config(16, 32, 16, split=3),
)


@dataclass(frozen=True)
class Case:
    """x (M, K), a weight (N, K) that is zero outside of its pattern, and the weight packed."""

    x: Tensor
    weight: Tensor
    packed: RunSparse
    bias: Tensor | None
    grad: Tensor
    scale: Tensor


def guarded(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, with NaN (or the least integer) before and behind them."""
    edge = 64
    poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
    memory = torch.full((tensor.numel() + 2 * edge,), poison, dtype=tensor.dtype)
    inside = memory[edge : edge + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside


def pattern(outputs: int, inputs: int, rows: int, run: int, kept: int) -> Tensor:
    """A mask (outputs, inputs) in which each group of rows keeps up to `kept` runs."""
    groups, runs = -(-outputs // rows), -(-inputs // run)
    order = torch.rand(groups, runs).argsort(1)
    mask = (order < kept).repeat_interleave(rows, 0)[:outputs]
    return mask.repeat_interleave(run, 1)[:, :inputs]


@st.composite
def cases(draw: st.DrawFn, *, whole: bool = False) -> Case:
    """A case; `whole` numbers make an int8 weight whose scale is not yet applied."""
    dtype = draw(st.sampled_from(DTYPES))
    tokens, outputs = draw(st.integers(1, 20)), draw(st.integers(1, 50))
    inputs, run = draw(st.integers(1, 70)), draw(st.sampled_from([1, 3, 8, 12, 16, 64]))
    run = min(run, inputs)
    rows = draw(st.sampled_from([1, 7, 16, 32, 64]))
    kept = draw(st.integers(1, -(-inputs // run)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    weight = torch.randn(outputs, inputs) * pattern(outputs, inputs, rows, run, kept)
    int8 = (weight * 40).round().clamp(-127, 127).to(torch.int8)
    weight = int8 if whole else weight.to(dtype)
    packed = RunSparse.pack(weight, rows, run)
    packed = RunSparse(guarded(packed.values), guarded(packed.index), rows, run, inputs)
    bias = guarded(torch.randn(outputs).to(dtype)) if draw(st.booleans()) else None
    return Case(
        guarded(torch.randn(tokens, inputs).to(dtype)),
        guarded(weight),
        packed,
        bias,
        guarded(torch.randn(tokens, outputs).to(dtype)),
        guarded(torch.rand(outputs)),
    )


def close(found: Tensor, expected: Tensor, size: Tensor) -> None:
    """`found` is what float64 gives, up to rounding; `size` says how large the sums' terms were."""
    assert found.shape == expected.shape
    assert bool(torch.isfinite(found).all())
    limit = CLOSE[found.dtype] * (size + expected.abs())
    wrong = (found.double() - expected).abs() > limit
    assert not bool(wrong.any()), (found[wrong], expected[wrong])


def check_product(found: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """`found` is x w^T + bias; x and w in any dtype."""
    x, w = x.double(), w.double()
    expected, size = x @ w.T, x.abs() @ w.abs().T
    if bias is not None:
        expected, size = expected + bias.double(), size + bias.double().abs()
    close(found, expected, size)
