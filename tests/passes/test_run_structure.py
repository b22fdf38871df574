"""Runs in zeros: found where they were planted, in rounded weights too, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_passes.run_structure import Structure, find_runs, is_two_of_four
from tests.passes.sparse_models import plant


@given(
    st.sampled_from([8, 16, 24]),
    st.sampled_from([1, 2, 4, 8, 12, 16]),
    st.sampled_from([(1, 4), (2, 4), (1, 2)]),
    st.integers(0, 9),
)
def test_planted_runs_are_found(rows: int, run: int, part: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    keep, of = part
    weight = torch.randn(4 * rows, 8 * of * run)
    plant(weight, rows, run, keep, of)
    assert find_runs(weight != 0) == Structure(rows, run, keep / of)


def test_zeros_of_rounding_do_not_hide_runs() -> None:
    weight = torch.randn(64, 256)
    plant(weight, 16, 16, 1, 4)
    weight[torch.rand_like(weight) < 0.1] = 0
    assert find_runs(weight != 0) == Structure(16, 16, 0.25)


def test_all_rows_may_be_alike() -> None:
    weight = torch.randn(20, 64)
    plant(weight, 20, 8, 2, 4)
    assert find_runs(weight != 0) == Structure(20, 8, 0.5)


def test_groups_that_keep_less_count_as_the_one_that_keeps_most() -> None:
    weight = torch.ones(16, 40)
    weight[:8, 8:] = 0
    weight[8:, 24:] = 0
    found = find_runs(weight != 0)
    assert found == Structure(8, 8, 0.6)


@pytest.mark.parametrize(
    "filled",
    [
        torch.ones(16, 16),
        torch.rand(64, 64) < 0.5,  # unstructured
        torch.tensor([[1, 0] * 8, [0, 1] * 8] * 8),  # runs, alike in one row only
        torch.cat([torch.ones(16, 31), torch.zeros(16, 1)], 1),  # too little to skip
    ],
)
def test_near_misses(filled: torch.Tensor) -> None:
    assert find_runs(filled != 0) is None


def test_two_of_four() -> None:
    good = torch.tensor([[1, 0, 1, 0, 0, 0, 0, 1]]) != 0
    assert is_two_of_four(good)
    assert not is_two_of_four(torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]) != 0)
    assert not is_two_of_four(good[:, :6])
