"""How a kernel cuts its work, and what it is chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """Sizes of a kernel's tile and the means of one program.

    Attributes:
        block_m: rows of a tile of the result; tokens, where those are rows.
        block_n: columns of a tile of the result; outputs, where those are columns.
        block_k: terms of the sums that are added in one step.
        warps: warps of a program.
        stages: depth of the software pipeline: tiles of the factors in flight, plus one.
        split: parts into which the sums are cut, each with a program of its own.
        swap: weights are the left factor of the product (see `gpu.tiles.multiply`).
        capability: the least compute capability where it keeps to registers, 90 for Hopper.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int = 4
    stages: int = 3
    split: int = 1
    swap: bool = False
    capability: int = 80


@dataclass(frozen=True)
class Problem:
    """A product that a config is chosen for: (m, k) by (k, n).

    Attributes:
        op: name of the op, or of its derivative.
        m, n, k: sizes of the product, as if no weight were left out.
        dtype: of what is no weight.
        pattern: what the weight is, such as `dense` or `128x16:64` for 64 runs of 16 inputs kept
            by groups of 128 outputs.
        rows: columns of the result that form a group, which a tile should not cut.
    """

    op: str
    m: int
    n: int
    k: int
    dtype: torch.dtype
    pattern: str = "dense"
    rows: int | None = None

    @property
    def shape_class(self) -> str:
        """m up to the next power of two, since many batch sizes but few layers are met; n; k."""
        return f"m{1 << max(0, self.m - 1).bit_length()} n{self.n} k{self.k}"

    @property
    def key(self) -> str:
        """What tables of measured configs are looked up by."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} {dtype} {self.pattern} {self.shape_class}"

    def programs(self, config: Config) -> int:
        """How many programs a config starts."""
        rows = self.rows or self.n
        tiles_n = -(-self.n // rows) * -(-rows // config.block_n)
        return -(-self.m // config.block_m) * tiles_n * config.split
