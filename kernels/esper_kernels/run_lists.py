"""Which groups of outputs keep a run: a `RunSparse` index seen from the inputs.

The gradient of x gathers, for a tile of inputs, from every group of outputs that keeps one of its
runs. Lists of those groups replace the atomic additions of a scatter, so sums have one order; where
a run is as wide as a tile they also leave out the products that a group does not need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esper_kernels.prepacked import Prepacked


@dataclass(frozen=True)
class RunLists:
    """For each tile of `per_tile` runs side by side, the groups that keep one of them.

    Attributes:
        groups: (tiles, groups) int32, the groups of each tile's list, ascending, and then the rest.
        counts: (tiles,) int32, how many groups are in the list.
        slots: (tiles, groups, per_tile) int32, where in the packed row of `groups` the run lies,
            counted in runs; -1 where it is not kept.
    """

    groups: Tensor
    counts: Tensor
    slots: Tensor


def run_lists(index: Tensor, runs: int, per_tile: int) -> RunLists:
    """Lists for `index` (groups, kept) over `runs` runs of inputs."""
    groups, kept = index.shape
    tiles = -(-runs // per_tile)
    slot = index.new_full((groups, tiles * per_tile), -1)
    place = torch.arange(kept, dtype=torch.int32, device=index.device).expand(groups, kept)
    slot.scatter_(1, index.long(), place)
    by_tile = slot.view(groups, tiles, per_tile).transpose(0, 1)  # (tiles, groups, per_tile)
    listed = (by_tile >= 0).any(2)
    order = listed.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    slots = by_tile.gather(1, order.unsqueeze(-1).expand(-1, -1, per_tile))
    return RunLists(order.to(torch.int32), listed.sum(1, dtype=torch.int32), slots.contiguous())


kept_run_lists = Prepacked(run_lists)
