"""Packing as a rearrangement of elements, so that whatever follows a weight is packed with it."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.state import Rearrange
from esper_kernels.run_sparse import columns
from esper_kernels.sparse24 import gather


def pack_runs(
    index: Tensor, shape: tuple[int, ...], rows: int, run: int, turned: bool
) -> Rearrange:
    """The move from a dense weight to the values of `RunSparse`.

    Args:
        index: (groups, kept), the numbers of the runs that stay.
        shape: of the dense weight.
        rows, run: as in `RunSparse`.
        turned: whether the weight is stored as (inputs, outputs).
    """
    grid = torch.arange(shape[0] * shape[1]).reshape(shape)
    grid = grid.T if turned else grid
    outputs, inputs = grid.shape
    wanted = columns(index.cpu(), run)[torch.arange(outputs) // rows]
    source = grid.gather(1, wanted.clamp_max(inputs - 1)).where(wanted < inputs, -1)
    return Rearrange(source, (1 if turned else 0, None))


def pack24(metadata: Tensor, shape: tuple[int, ...], turned: bool) -> Rearrange:
    """The move from a dense weight to the values of `Sparse24`, whose dims are none of the old.

    Args:
        metadata: of the packed weight: which entries stay.
        shape, turned: as for `pack_runs`.
    """
    grid = torch.arange(shape[0] * shape[1]).reshape(shape)
    # Positions count from 1 meanwhile: what lies outside of the weight is gathered as 0.
    source = gather((grid.T if turned else grid) + 1, metadata.cpu()) - 1
    return Rearrange(source, (None,) * source.ndim)


def kept(move: Rearrange, shape: tuple[int, ...]) -> Tensor:
    """Which entries of a tensor of that shape a move keeps, bool."""
    return move.inverse(shape).source >= 0


def turn(shape: tuple[int, ...]) -> Rearrange:
    """A matrix as its transpose."""
    return Rearrange(torch.arange(shape[0] * shape[1]).reshape(shape).T, (1, 0))


def flatten(shape: tuple[int, ...]) -> Rearrange:
    """A row or column as a vector."""
    longest = max(range(len(shape)), key=shape.__getitem__)
    return Rearrange(torch.arange(shape[longest]), (longest,))
