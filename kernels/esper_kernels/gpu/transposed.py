"""dx = dy W for weights that are sparse in runs, or dense int8: the gradient of a layer's input."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, check_dtype, sizes, tiles
from esper_kernels.gpu.tiles import swizzle
from esper_kernels.run_lists import RunLists, kept_run_lists, run_lists


@triton.jit
def list_entry(groups, slots, place, count, run, RUNS: tl.constexpr):
    """(group, slots of the tile's runs) at a place of a tile's list; loaded a step ahead."""
    kept = tl.where(place < count, RUNS, 0)
    return (
        tl.load(groups + place, mask=kept > 0, other=0),
        tl.load(slots + place * RUNS + run, mask=run < kept, other=-1),
    )


@triton.jit
def transposed_kernel(
    grad,
    weight,
    scale,
    groups,
    counts,
    slots,
    out,
    tokens,
    outputs,
    inputs,
    packed,
    rows,
    all_groups,
    RUN: tl.constexpr,
    RUNS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out (M, K) from grad (M, N), weight (N, packed) and, for int8, scale (N,).

    A program has BLOCK_M tokens and up to BLOCK_K inputs: RUNS whole runs, or one of PIECES pieces
    of a run. It walks over the list of groups that keep any of them, BLOCK_N outputs at a time.
    Without lists (`groups` None) the weight is dense and all its outputs are one group.
    """
    width: tl.constexpr = RUNS * RUN
    tiles_k = tl.cdiv(inputs, width) * PIECES
    tile_m, tile_k = swizzle(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tiles_k, GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_exists = m < tokens
    within = tile_k % PIECES * BLOCK_K + tl.arange(0, BLOCK_K)  # place in the list's tile
    tile = tile_k // PIECES
    k = tile * width + within
    k_exists = (within < width) & (k < inputs)
    grad_rows = grad + m.to(tl.int64) * outputs
    per_group = tl.cdiv(rows, BLOCK_N)
    run = within // RUN
    if groups is None:
        count = 1
        group = 0
        slot = run
    else:
        count = tl.load(counts + tile)
        groups += tile * all_groups
        slots += tile * all_groups * RUNS
        group, slot = list_entry(groups, slots, 0, count, run, RUNS)
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for step in range(count * per_group):
        n = group * rows + step % per_group * BLOCK_N + tl.arange(0, BLOCK_N)
        n_exists = n < tl.minimum((group + 1) * rows, outputs)
        if groups is None:
            column = k
            stored = k_exists
        else:
            column = slot * RUN + within % RUN
            stored = k_exists & (slot >= 0)
            group, slot = list_entry(groups, slots, (step + 1) // per_group, count, run, RUNS)
        w = tl.load(
            weight + (n.to(tl.int64) * packed)[:, None] + column[None, :],
            mask=n_exists[:, None] & stored[None, :],
            other=0,
        )
        dy = tl.load(
            grad_rows[:, None] + n[None, :], mask=m_exists[:, None] & n_exists[None, :], other=0
        )
        if scale is not None:
            factor = tl.load(scale + n, mask=n_exists, other=0).to(tl.float32)
            w = w.to(tl.float32) * factor[:, None]
        total = tl.dot(dy, w.to(dy.dtype), total, input_precision=PRECISION)
    tl.store(
        (out + m.to(tl.int64) * inputs)[:, None] + k[None, :],
        total.to(out.dtype.element_ty),
        mask=m_exists[:, None] & k_exists[None, :],
    )


def launches(
    grad: Tensor,
    weight: Tensor,
    index: Tensor | None,
    scale: Tensor | None,
    rows: int | None,
    width: int,
    inputs: int,
    config: Config,
) -> tuple[Tensor, list[Launch]]:
    """The result (M, inputs) and the launch that fills it.

    grad (M, N) and weight (N, packed) are contiguous. Without `index` the weight is dense. The
    result's columns are the layer's inputs, so those come in tiles of `block_n`.
    """
    check_dtype(grad.dtype)
    tokens, outputs = grad.shape
    lists: RunLists | None = None
    if index is None:
        width = config.block_n
        per_tile = pieces = 1
    else:
        per_tile = max(1, config.block_n // width)
        pieces = tiles(width, config.block_n)
        # A pattern is fixed between rewrites: its lists are made once.
        listed = run_lists if index.is_inference() else kept_run_lists
        lists = listed(index, tiles(inputs, width), per_tile)
    out = grad.new_empty(tokens, inputs)
    tiles_k = tiles(inputs, per_tile * width) * pieces
    launch = Launch(
        transposed_kernel,
        (tiles(tokens, config.block_m) * tiles_k,),
        {
            "grad": grad,
            "weight": weight,
            "scale": scale,
            "groups": None if lists is None else lists.groups,
            "counts": None if lists is None else lists.counts,
            "slots": None if lists is None else lists.slots,
            "out": out,
            "tokens": tokens,
            "outputs": outputs,
            "inputs": inputs,
            "packed": weight.shape[1],
            "rows": rows or outputs,
            "all_groups": 1 if index is None else index.shape[0],
            "RUN": width,
            "RUNS": per_tile,
            "PIECES": pieces,
            **sizes(config, grad.dtype),
            "BLOCK_N": config.block_k,
            "BLOCK_K": config.block_n,
        },
        config.warps,
        config.stages,
    )
    return out, [launch]
