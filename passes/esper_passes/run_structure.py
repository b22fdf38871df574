"""Runs in the zeros of a weight: which rows read the same inputs, in runs of how many."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST_ROWS = 8  # fewer rows that share their inputs are not worth a product of their own
MOST_DENSE = 0.9  # beyond that, what is skipped is noise
_LONGEST = 256  # inputs of a run that are looked for
_EQUAL = 1.05  # densities in that ratio are the same: the longer run wins


@dataclass(frozen=True)
class Structure:
    """What `RunSparse` needs to know of a weight.

    Attributes:
        rows: outputs that share their runs.
        run: inputs that are kept or dropped together.
        density: share of the inputs that each group of rows keeps.
    """

    rows: int
    run: int
    density: float


def find_runs(filled: Tensor) -> Structure | None:
    """The structure with the fewest kept weights; among equals the one of the longest runs.

    Rounded weights hold zeros besides those of their pattern. A run is dropped only where all of it
    is zero, so that they blur runs of single inputs and leave longer ones clear.

    Args:
        filled: (outputs, inputs) bool, true where the weight counts.

    Returns:
        None where nothing, or too little, could be skipped.
    """
    outputs, inputs = filled.shape
    found: list[Structure] = []
    for run in sorted({2**n for n in range(_LONGEST.bit_length())} | {_period(filled.T)}):
        if run > inputs:
            continue
        runs = -(-inputs // run)
        padded = torch.nn.functional.pad(filled, (0, runs * run - inputs))
        kept = padded.view(outputs, runs, run).any(2)
        density = int(kept.sum(1).max()) * run / inputs
        rows = _period(kept)
        if rows >= min(FEWEST_ROWS, outputs) and density <= MOST_DENSE:
            found.append(Structure(rows, run, density))
    least = min((each.density for each in found), default=0.0)
    equal = [each for each in found if each.density <= least * _EQUAL]
    return max(equal, key=lambda each: each.run, default=None)


def _period(rows: Tensor) -> int:
    """The largest number such that the rows of each block of so many are alike."""
    changes = (rows[1:] != rows[:-1]).any(1).nonzero().flatten() + 1
    return math.gcd(*changes.tolist()) or len(rows)


def is_two_of_four(filled: Tensor) -> bool:
    """Whether of every 4 inputs in a row at most 2 count, and all rows have such groups."""
    outputs, inputs = filled.shape
    return inputs % 4 == 0 and bool((filled.view(outputs, -1, 4).sum(2) <= 2).all())
