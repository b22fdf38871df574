"""Packing keeps every number, and refuses what it cannot pack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_kernels.int8 import quantize
from esper_kernels.run_sparse import RunSparse

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8]


@given(st.data())
def test_unpacking_gives_the_weight(data: st.DataObject) -> None:
    outputs, inputs = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rows, run = data.draw(st.integers(1, 50)), data.draw(st.integers(1, inputs))
    share = data.draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    dtype = data.draw(st.sampled_from(DTYPES))
    groups, runs = -(-outputs // rows), -(-inputs // run)
    kept = torch.rand(groups, runs) < share
    weight = (torch.randn(outputs, inputs) * 50).to(dtype)
    off = ~kept.repeat_interleave(rows, 0)[:outputs].repeat_interleave(run, 1)[:, :inputs]
    weight[off] = 0
    packed = RunSparse.pack(weight, rows, run)
    assert torch.equal(packed.unpack(), weight)
    assert packed.values.dtype == dtype
    assert packed.index.dtype == torch.int32
    assert packed.values.shape == (outputs, packed.index.shape[1] * run)
    assert packed.index.shape[0] == groups
    assert packed.index.shape[1] <= max(1, int(kept.sum(1).max()))
    assert bool((packed.index.diff(dim=1) > 0).all())
    assert bool(((packed.index >= 0) & (packed.index < runs)).all())
    assert packed.density == packed.index.shape[1] / runs
    assert packed.values.is_contiguous()


def test_what_is_not_a_number_is_kept() -> None:
    weight = torch.zeros(4, 8)
    weight[1, 2], weight[3, 7] = torch.nan, torch.inf
    packed = RunSparse.pack(weight, 2, 2)
    assert packed.index.tolist() == [[1], [3]]
    torch.testing.assert_close(packed.unpack(), weight, equal_nan=True, rtol=0, atol=0)


def test_groups_are_filled_up_with_runs_of_zeros() -> None:
    weight = torch.zeros(4, 8)
    weight[:2, :6] = 1
    weight[2:, 6:] = 2
    packed = RunSparse.pack(weight, 2, 2)
    assert packed.index.tolist() == [[0, 1, 2], [0, 1, 3]]
    assert packed.values[2:].tolist() == [[0, 0, 0, 0, 2, 2]] * 2


def test_a_packed_weight_does_not_change() -> None:
    packed = RunSparse.pack(torch.ones(4, 8), 2, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        packed.run = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "rows", "run", "message"),
    [
        ((4,), 2, 2, "no matrix"),
        ((0, 4), 2, 2, "no matrix"),
        ((4, 8), 2, 9, "no runs of 9"),
        ((4, 8), 2, 0, "no runs of 0"),
        ((4, 8), 0, 2, "groups of 0 rows"),
    ],
)
def test_refusals(shape: tuple[int, ...], rows: int, run: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSparse.pack(torch.ones(shape), rows, run)


@given(st.integers(1, 20), st.integers(1, 30), st.sampled_from([1e-20, 1.0, 1e20]))
def test_integers_are_off_by_half_a_scale(outputs: int, inputs: int, size: float) -> None:
    weight = torch.randn(outputs, inputs) * size
    weight[0] = 0
    values, scale = quantize(weight)
    assert values.dtype == torch.int8
    assert scale.shape == (outputs,)
    assert int(values.abs().max()) <= 127
    error = (values * scale[:, None] - weight).abs()
    assert bool((error <= scale[:, None] * 0.5001).all())
    assert not values[0].any()
