"""y = (x D^T) U^T, two products in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.barrier import counter_of, leave, wait_for_all
from esper_kernels.gpu.running import Launch, check_dtype, sizes, tiles
from esper_kernels.gpu.tiles import multiply, product, read, zeros


@triton.jit
def low_rank_kernel(
    x,
    down,
    up,
    bias,
    inner,
    counter,
    out,
    tokens,
    outputs,
    inputs,
    rank,
    size,
    programs,
    SPLIT: tl.constexpr,
    PHASE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out (M, N) from x (M, K), down (r, K), up (N, r), by way of inner (SPLIT, M, r) in float32,
    whose parts have `size` numbers.

    Programs share out the tiles of x D^T, cut into SPLIT parts of the inputs so that all have work
    although r is small; wait for each other; and share out the tiles of the result. PHASE 1 or 2 is
    one half alone, for an interpreter that runs programs one by one; 0 is both.
    """
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    if PHASE != 2:
        steps = tl.cdiv(inputs, BLOCK_K)
        share = tl.cdiv(steps, SPLIT)
        tiles_r = tl.cdiv(rank, BLOCK_R)
        for tile in range(tl.program_id(0), tiles_m * tiles_r * SPLIT, programs):
            part = tile % SPLIT
            m = tile // SPLIT // tiles_r * BLOCK_M + tl.arange(0, BLOCK_M)
            r = tile // SPLIT % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
            m_exists = m < tokens
            r_exists = r < rank
            total = product(
                x,
                down,
                None,
                m,
                m_exists,
                r,
                r_exists,
                inputs,
                inputs,
                part * share,
                tl.minimum((part + 1) * share, steps),
                1,
                BLOCK_M,
                BLOCK_R,
                BLOCK_K,
                SWAP,
                EVEN,
                PRECISION,
            )
            tl.store(
                (inner + (part * tokens + m).to(tl.int64) * rank)[:, None] + r[None, :],
                total,
                mask=m_exists[:, None] & r_exists[None, :],
            )
    if PHASE == 0:
        wait_for_all(counter, programs)
    if PHASE != 1:
        tiles_n = tl.cdiv(outputs, BLOCK_N)
        for tile in range(tl.program_id(0), tiles_m * tiles_n, programs):
            m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
            n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
            m_exists = m < tokens
            n_exists = n < outputs
            inner_rows = inner + m.to(tl.int64) * rank
            up_rows = up + n.to(tl.int64) * rank
            total = zeros(BLOCK_M, BLOCK_N, SWAP)
            for step in range(tl.cdiv(rank, BLOCK_K)):
                r = step * BLOCK_K + tl.arange(0, BLOCK_K)
                r_exists = r < rank
                w = read(up_rows, r, n_exists, r_exists, False)
                between = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
                part_rows = inner_rows
                for _ in tl.static_range(SPLIT):
                    between += read(part_rows, r, m_exists, r_exists, False)
                    part_rows += size
                total = multiply(between.to(w.dtype), w, total, SWAP, PRECISION)
            if SWAP:
                total = tl.trans(total)
            if bias is not None:
                total += tl.load(bias + n, mask=n_exists, other=0).to(tl.float32)[None, :]
            tl.store(
                (out + m.to(tl.int64) * outputs)[:, None] + n[None, :],
                total.to(out.dtype.element_ty),
                mask=m_exists[:, None] & n_exists[None, :],
            )
    if PHASE == 0:
        leave(counter, programs)


def launches(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    bias: Tensor | None,
    programs: int,
    config: Config,
    *,
    at_once: bool = True,
) -> tuple[Tensor, list[Launch]]:
    """The result (M, N) and the launch that fills it; x (M, K), down (r, K), up (N, r) contiguous.

    `programs` wait for each other, so they must fit on the device together: a launch of more is
    refused by the driver. Without `at_once` there are two launches and nobody waits.
    """
    check_dtype(x.dtype)
    (tokens, inputs), (rank, _), (outputs, _) = x.shape, down.shape, up.shape
    out = x.new_empty(tokens, outputs)
    inner = x.new_empty(config.split, tokens, rank, dtype=torch.float32)
    block_r = min(config.block_n, 32)
    first = tiles(tokens, config.block_m) * tiles(rank, block_r) * config.split
    second = tiles(tokens, config.block_m) * tiles(outputs, config.block_n)
    programs = min(programs, max(first, second))
    arguments = {
        "x": x,
        "down": down,
        "up": up,
        "bias": bias,
        "inner": inner,
        "counter": counter_of(x.device) if at_once else None,
        "out": out,
        "tokens": tokens,
        "outputs": outputs,
        "inputs": inputs,
        "rank": rank,
        "size": tokens * rank,
        "programs": programs,
        "SPLIT": config.split,
        "BLOCK_R": block_r,
        "SWAP": config.swap,
        "EVEN": inputs % config.block_k == 0,
        **sizes(config, x.dtype),
    }
    options = {"launch_cooperative_grid": True} if at_once else {}
    built = [
        Launch(
            low_rank_kernel,
            (programs,),
            {**arguments, "PHASE": phase},
            config.warps,
            config.stages,
            options,
        )
        for phase in ((0,) if at_once else (1, 2))
    ]
    return out, built
