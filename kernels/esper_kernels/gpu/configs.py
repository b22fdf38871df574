"""The configs that ops ship, for each kind of factors.

They come from what compiles to wide copies and tensor-core instructions without spills on both
sm_80 and sm_90, with Triton 3.6 and 3.9 (see `aot`), and from the sizes of the memory that has to
be in flight; none has been measured yet. Tiles 16 high are for decoding, 32 and 64 for small
batches, the rest for prefill.
"""

from __future__ import annotations

import torch

from esper_kernels.config import Config

# A tile 16 high and 64 wide with `swap` is what wgmma takes; one 32 wide goes to mma, and is there
# because it has twice the programs. Splits are for layers of few outputs.
LINEAR_16 = (
    Config(16, 128, 64, warps=4, stages=6, swap=True),
    Config(16, 64, 128, warps=4, stages=5, swap=True),
    Config(16, 32, 256, warps=4, stages=4),
    Config(16, 64, 128, warps=4, stages=5, swap=True, split=4),
    Config(16, 32, 256, warps=4, stages=4, split=4),
    Config(32, 64, 128, warps=4, stages=4, swap=True),
    Config(32, 64, 128, warps=4, stages=4, swap=True, split=4),
    Config(64, 64, 128, warps=4, stages=4),
    Config(64, 64, 128, warps=4, stages=4, split=4),
    Config(128, 256, 64, warps=8, stages=3, capability=90),
    Config(128, 128, 64, warps=8, stages=4),
    Config(64, 128, 64, warps=4, stages=4),
)
# int8 goes to registers to become floating there: wgmma would take it from shared memory, in copies
# of 4 bytes. So no swap.
LINEAR_8 = (
    Config(16, 64, 128, warps=4, stages=5),
    Config(16, 32, 256, warps=4, stages=4),
    Config(16, 32, 256, warps=4, stages=4, split=4),
    Config(32, 64, 128, warps=4, stages=4),
    Config(32, 32, 128, warps=4, stages=5),
    Config(64, 64, 128, warps=8, stages=4),
    Config(64, 32, 256, warps=4, stages=3),
    Config(64, 64, 128, warps=8, stages=4, split=4),
    Config(128, 128, 64, warps=8, stages=4),
)
# float32 with int8 weights, which nobody should need: their rows are short, and become four times
# as many registers.
LINEAR_8_32 = (
    Config(16, 64, 64, warps=8, stages=3),
    Config(16, 32, 64, warps=4, stages=3),
)
LINEAR_32 = (
    Config(16, 32, 64, warps=4, stages=4),
    Config(16, 16, 128, warps=4, stages=4),
    Config(16, 32, 64, warps=4, stages=4, split=4),
    Config(128, 64, 32, warps=8, stages=3),
    Config(64, 64, 32, warps=8, stages=2),
)

PROJECTIONS_16 = (
    Config(16, 128, 64, warps=4, stages=6, swap=True),
    Config(16, 64, 128, warps=4, stages=5, swap=True),
    Config(16, 32, 128, warps=4, stages=6),
    Config(32, 64, 128, warps=4, stages=4, swap=True),
    Config(64, 64, 64, warps=4, stages=5),
    Config(128, 256, 64, warps=8, stages=3, capability=90),
    Config(128, 128, 64, warps=8, stages=4),
    Config(64, 128, 64, warps=4, stages=4),
)
PROJECTIONS_32 = (
    Config(16, 32, 64, warps=4, stages=4),
    Config(16, 16, 64, warps=4, stages=5),
    Config(128, 32, 32, warps=8, stages=3),
    Config(64, 64, 32, warps=8, stages=3),
)

GATED_16 = (
    Config(16, 64, 128, warps=4, stages=4, swap=True),
    Config(16, 32, 128, warps=8, stages=4),
    Config(32, 64, 128, warps=4, stages=3, swap=True),
    Config(64, 64, 64, warps=4, stages=4),
    Config(128, 64, 64, warps=8, stages=4),
    Config(64, 128, 64, warps=8, stages=4),
)
GATED_8 = (
    Config(16, 64, 128, warps=4, stages=4),
    Config(16, 32, 128, warps=8, stages=4),
    Config(32, 64, 128, warps=4, stages=3),
    Config(64, 64, 64, warps=4, stages=4),
    Config(128, 64, 64, warps=8, stages=4),
)
GATED_32 = (
    Config(16, 32, 32, warps=4, stages=4),
    Config(16, 16, 64, warps=4, stages=4),
    Config(64, 64, 16, warps=8, stages=3),
)
GATED_8_32 = (Config(16, 16, 32, warps=4, stages=4),)

TRANSPOSED_16 = (
    Config(16, 64, 64, warps=4, stages=4),
    Config(128, 128, 64, warps=8, stages=4),
    Config(128, 64, 64, warps=8, stages=4),
    Config(64, 64, 64, warps=4, stages=4),
)
TRANSPOSED_32 = (
    Config(16, 32, 64, warps=4, stages=3),
    Config(64, 64, 32, warps=8, stages=3),
)

GRADIENT_16 = (
    Config(128, 128, 64, warps=8, stages=4),
    Config(64, 128, 64, warps=4, stages=4),
    Config(64, 64, 64, warps=4, stages=4),
)
GRADIENT_32 = (Config(64, 64, 32, warps=8, stages=3),)

LOW_RANK_16 = (
    Config(16, 32, 128, warps=4, stages=4, split=4),
    Config(16, 32, 64, warps=4, stages=4, split=8),
    Config(64, 64, 64, warps=4, stages=3, split=4),
    Config(128, 128, 64, warps=8, stages=3),
)
LOW_RANK_32 = (
    Config(16, 32, 64, warps=4, stages=3, split=4),
    Config(64, 64, 32, warps=8, stages=3),
)


# `block_k` is what a warp has in a turn; sums are split over the warps.
SPARSE_24 = (
    Config(8, 32, 64, warps=16, stages=1),
    Config(8, 16, 64, warps=16, stages=1),
    Config(16, 32, 64, warps=8, stages=1),
    Config(16, 16, 64, warps=16, stages=1),
    Config(32, 32, 64, warps=8, stages=1),
    Config(32, 16, 64, warps=8, stages=1),
)


def by_width(
    dtype: torch.dtype, wide: tuple[Config, ...], narrow: tuple[Config, ...]
) -> tuple[Config, ...]:
    """`wide` for float32 factors, `narrow` for those of 16 bits."""
    return wide if dtype == torch.float32 else narrow
