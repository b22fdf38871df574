"""Sparsity patterns: which entries of a weight may be off together.

- `N:M`: of every M consecutive weights along the contracted dim N are on (2:4: Mishra et al.,
  arXiv:2104.08378).
- `V:N:M`: the same, chosen alike for V consecutive outputs: a cell is a run of V weights. (The
  format of that name in arXiv:2310.02065 applies a further N:M within the columns that stay.)
- `V:N:MxC`: the same with runs of C consecutive inputs in the place of one: of every M runs N are
  on. 128:2:4x16 keeps 2 of 4 runs of 16 inputs, alike for 128 outputs. `N:MxC` is V = 1.
- `RxC`: blocks of R outputs by C inputs are on or off as wholes; 1x1 is unstructured.

A weight is seen as (outputs, inputs, rest), rest being the places of a kernel: a group of N:M lies
in one place, with runs too; a block spans them all. A *cell* is what is on or off together; a
*group* is the set of cells of which a fixed number is on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

_GROUPS = re.compile(r"(?:([1-9]\d*):)?([1-9]\d*):([1-9]\d*)(?:x([1-9]\d*))?")
_BLOCKS = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern on weights whose groups run along `dim` (0 or 1).

    Attributes:
        rows, columns: size of a cell, in outputs and inputs.
        keep, of: cells that are on in a group of that many; 0 of 0 where all cells are one group.
        density: share of cells that are on, in that case.
        dim: dim of the inputs; the outputs are the other of the first two.
    """

    rows: int
    columns: int
    keep: int
    of: int
    density: float
    dim: int

    @classmethod
    def parse(cls, text: str, density: float = 0.5, dim: int = 1) -> Pattern:
        """Raises ValueError for what is no pattern."""
        if dim not in (0, 1):
            raise ValueError(f"groups run along dim 0 or 1, not {dim}")
        if groups := _GROUPS.fullmatch(text):
            rows, keep, of, columns = (int(n or 1) for n in groups.groups())
            if keep >= of:
                raise ValueError(f"{text}: fewer than {of} of {of} must be on")
            return cls(rows, columns, keep, of, keep / of, dim)
        if blocks := _BLOCKS.fullmatch(text):
            if not 0 < density < 1:
                raise ValueError(f"the density of blocks lies between 0 and 1, it is not {density}")
            return cls(int(blocks[1]), int(blocks[2]), 0, 0, density, dim)
        raise ValueError(
            f"{text!r} is no pattern: N:M, V:N:M, V:N:MxC or RxC, as 2:4, 16:2:4, 128:2:4x16 or "
            "16x16"
        )

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Why a weight of that shape cannot have the pattern; empty where it can."""
        if len(shape) < 2:
            return "a weight of fewer than two dims has no rows and columns"
        outputs, inputs = shape[1 - self.dim], shape[self.dim]
        if outputs % self.rows:
            return f"{outputs} outputs are no multiple of {self.rows}"
        step = self.columns * max(self.of, 1)
        if inputs % step:
            runs = f", {self.of} runs of {self.columns}" if self.of and self.columns > 1 else ""
            return f"{inputs} inputs are no multiple of {step}{runs}"
        return ""

    def cells(self, scores: torch.Tensor) -> torch.Tensor:
        """Sum of entries in each cell, (groups, cells)."""
        seen = scores if self.dim == 1 else scores.transpose(0, 1)
        outputs = len(seen)
        cut = seen.reshape(outputs // self.rows, self.rows, -1, self.columns, seen[0, 0].numel())
        if self.of:
            summed = cut.sum((1, 3))  # (row groups, runs, rest)
            grouped = summed.reshape(len(summed), -1, self.of, summed.shape[2])
            return grouped.movedim(2, 3).reshape(-1, self.of)
        return cut.sum((1, 3, 4)).reshape(1, -1)

    def spread(self, on: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The mask of a weight of that shape from what is on, (groups, cells)."""
        outputs, inputs, *rest = (shape[1 - self.dim], shape[self.dim], *shape[2:])
        groups, runs, places = outputs // self.rows, inputs // self.columns, math.prod(rest)
        if self.of:
            grouped = on.reshape(groups, runs // self.of, places, self.of).movedim(3, 2)
            cells = grouped.reshape(groups, 1, runs, 1, places)
        else:
            cells = on.reshape(groups, 1, runs, 1, 1)
        seen = cells.expand(-1, self.rows, -1, self.columns, places)
        mask = seen.reshape(outputs, inputs, *rest)
        return (mask if self.dim == 1 else mask.transpose(0, 1)).contiguous()

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """The cells with most score in each group, (groups, cells); the first among equals."""
        count = scores.shape[1]
        keep = self.keep or max(1, round(self.density * count))
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        on = torch.zeros_like(scores, dtype=torch.bool)
        return on.scatter_(1, order[:, :keep], True)

    def fits(self, mask: torch.Tensor) -> bool:
        """Whether cells are on or off as wholes, and each N:M group has N of M."""
        if self.misfit(tuple(mask.shape)):
            return False
        filled = self.cells(mask.float())
        rest = 1 if self.of else mask[0, 0].numel()
        whole = bool(((filled == 0) | (filled == self.rows * self.columns * rest)).all())
        return whole and (not self.of or bool(((filled > 0).sum(1) == self.keep).all()))

    def on(self, mask: torch.Tensor) -> torch.Tensor:
        """Which cells of a mask that fits are on, (groups, cells)."""
        return self.cells(mask.float()) > 0
