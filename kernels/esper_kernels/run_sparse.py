"""The format of weights that are sparse in runs: V:N:M with runs, and blocks.

Rows (outputs) are cut into groups of `rows`, columns (inputs) into runs of `run`, and a group of
rows keeps the same number of runs as any other. The last group and the last run may be shorter.
Blocks of R x C are groups of R rows with runs of C; V:N:M (arXiv:2310.02065) without its inner N:M
is groups of V rows with runs of 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def columns(index: Tensor, run: int) -> Tensor:
    """Column of each kept weight: (groups, kept) numbers of runs to (groups, kept * run), int64.

    Columns of a last run that is shorter may lie beyond the weight.
    """
    first = index.long() * run
    return (first.unsqueeze(-1) + torch.arange(run, device=index.device)).flatten(1)


def unpack(values: Tensor, index: Tensor, rows: int, run: int, inputs: int) -> Tensor:
    """The dense weight (N, inputs) of `values` (N, kept * run) and `index` (groups, kept)."""
    group = torch.arange(len(values), device=values.device) // rows
    width = -(-inputs // run) * run
    dense = values.new_zeros(len(values), width)
    return dense.scatter_(1, columns(index, run)[group], values)[:, :inputs].contiguous()


@dataclass(frozen=True)
class RunSparse:
    """A packed weight of (N, inputs), any dtype.

    Attributes:
        values: (N, kept * run), the kept runs of each row side by side, columns ascending; zero
            beyond the last column.
        index: (ceil(N / rows), kept) int32, the numbers of the runs a group of rows keeps,
            ascending: a weight's column is `index * run + offset`. Groups that need fewer runs
            than others are filled up with runs of zeros.
        rows: outputs that share their runs.
        run: inputs that are kept together.
        inputs: columns of the dense weight.
    """

    values: Tensor
    index: Tensor
    rows: int
    run: int
    inputs: int

    @classmethod
    def pack(cls, weight: Tensor, rows: int, run: int) -> RunSparse:
        """Keep every run with an entry that is not zero; at least one.

        Raises:
            ValueError: for what is no matrix of that many rows and columns at least.
        """
        if weight.ndim != 2 or weight.numel() == 0:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} is no matrix with entries")
        outputs, inputs = weight.shape
        if rows < 1 or not 1 <= run <= inputs:
            raise ValueError(f"{inputs} columns have no runs of {run}, for groups of {rows} rows")
        groups, runs = -(-outputs // rows), -(-inputs // run)
        padded = weight.new_zeros(groups * rows, runs * run)
        padded[:outputs, :inputs] = weight.detach()
        cut = padded.view(groups, rows, runs, run).transpose(1, 2)  # (groups, runs, rows, run)
        filled = (cut != 0).any(3).any(2)
        kept = max(1, int(filled.sum(1).max()))
        # Runs with entries first, in order, then empty ones to fill up.
        first = filled.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :kept]
        index = first.sort(1).values
        taken = cut.gather(1, index[:, :, None, None].expand(-1, -1, rows, run))
        values = taken.transpose(1, 2).reshape(groups * rows, kept * run)[:outputs]
        return cls(values.contiguous(), index.to(torch.int32), rows, run, inputs)

    def unpack(self) -> Tensor:
        """The dense weight again; a zero that was dropped as -0.0 comes back as 0.0."""
        return unpack(self.values, self.index, self.rows, self.run, self.inputs)

    @property
    def density(self) -> float:
        """Share of the runs of the dense weight that each group keeps."""
        return self.index.shape[1] / -(-self.inputs // self.run)
