"""Lists of the groups that keep a run."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_kernels.run_lists import kept_run_lists, run_lists


def index_of(groups: int, runs: int, kept: int) -> torch.Tensor:
    return torch.rand(groups, runs).argsort(1)[:, :kept].sort(1).values.to(torch.int32)


@given(
    st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99)
)
def test_lists_tell_what_the_index_tells(
    groups: int, runs: int, kept: int, per_tile: int, seed: int
) -> None:
    torch.manual_seed(seed)
    index = index_of(groups, runs, min(kept, runs))
    lists = run_lists(index, runs, per_tile)
    told = [
        (int(lists.groups[tile, place]), tile * per_tile + run, slot)
        for tile in range(len(lists.counts))
        for place in range(int(lists.counts[tile]))
        for run, slot in enumerate(lists.slots[tile, place].tolist())
        if slot >= 0
    ]
    meant = [
        (group, run, slot)
        for group, row in enumerate(index.tolist())
        for slot, run in enumerate(row)
    ]
    assert sorted(told) == sorted(meant)
    for tile, count in enumerate(lists.counts.tolist()):
        listed = lists.groups[tile, :count].tolist()
        assert listed == sorted(set(listed)), "ascending, so that sums have one order"
        assert bool((lists.slots[tile, :count] >= 0).any(1).all()), "each keeps one of the runs"


def test_the_cache_follows_changes_in_place() -> None:
    index = torch.tensor([[0, 2]], dtype=torch.int32)
    first = kept_run_lists(index, 4, 1)
    assert kept_run_lists(index, 4, 1) is first
    index[0, 1] = 3
    assert kept_run_lists(index, 4, 1).counts.tolist() == [1, 0, 0, 1]
