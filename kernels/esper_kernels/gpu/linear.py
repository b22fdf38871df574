"""y = x W^T for weights that are dense or sparse in runs, floating or int8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, check_dtype, grouped_tiles, sizes, tiles
from esper_kernels.gpu.tiles import outputs_of, product, swizzle

PARTS_BLOCK = 1024  # numbers that a program of `add_parts_kernel` adds


@triton.jit
def linear_kernel(
    x,
    weight,
    index,
    scale,
    bias,
    out,
    tokens,
    outputs,
    inputs,
    packed,
    rows,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out (M, N), or with SPLIT > 1 one float32 (M, N) for each part of the inputs.

    x (M, K), weight (N, packed), index (groups, packed / RUN) or None, scale (N,) of int8 weights
    or None, bias (N,) or None. Grid: (tiles, SPLIT).
    """
    tiles_n = tl.cdiv(outputs, rows) * tl.cdiv(rows, BLOCK_N)
    tile_m, tile_n = swizzle(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tiles_n, GROUP)
    part = 0 if SPLIT == 1 else tl.program_id(1)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    group, n, n_exists = outputs_of(tile_n, rows, outputs, BLOCK_N)
    m_exists = m < tokens
    steps = tl.cdiv(packed, BLOCK_K)
    share = tl.cdiv(steps, SPLIT)
    if index is not None:
        index += group * (packed // RUN)
    total = product(
        x,
        weight,
        index,
        m,
        m_exists,
        n,
        n_exists,
        inputs,
        packed,
        part * share,
        tl.minimum((part + 1) * share, steps),
        RUN,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SWAP,
        EVEN,
        PRECISION,
    )
    if SPLIT == 1:
        if scale is not None:
            total *= tl.load(scale + n, mask=n_exists, other=0).to(tl.float32)[None, :]
        if bias is not None:
            total += tl.load(bias + n, mask=n_exists, other=0).to(tl.float32)[None, :]
    rows_out = out + (part * tokens + m).to(tl.int64) * outputs
    tl.store(
        rows_out[:, None] + n[None, :],
        total.to(out.dtype.element_ty),
        mask=m_exists[:, None] & n_exists[None, :],
    )


@triton.jit
def add_parts_kernel(
    parts,
    scale,
    bias,
    out,
    size,
    outputs,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (M, N) = sum of parts (SPLIT, M, N), scaled and with bias.

    A launch of its own rather than atomics: the order of the sum, and so its bits, is always one.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = place < size
    pointer = parts + place
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(SPLIT):
        total += tl.load(pointer, mask=exists, other=0)
        pointer += size
    if scale is not None:
        total *= tl.load(scale + place % outputs, mask=exists, other=0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + place % outputs, mask=exists, other=0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=exists)


def launches(
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int | None,
    width: int,
    config: Config,
) -> tuple[Tensor, list[Launch]]:
    """The result (M, N) and the launches that fill it.

    x (M, K) and weight (N, packed) are contiguous. Without `index` the weight is dense, and `rows`
    is None; `width` is the length of a run, any number for dense weights.
    """
    check_dtype(x.dtype)
    (tokens, inputs), (outputs, packed) = x.shape, weight.shape
    rows = rows or outputs
    out = x.new_empty(tokens, outputs)
    whole = config.split == 1
    parts = out if whole else x.new_empty(config.split, tokens, outputs, dtype=torch.float32)
    tiles_n = grouped_tiles(outputs, rows, config.block_n)
    product = Launch(
        linear_kernel,
        (tiles(tokens, config.block_m) * tiles_n, config.split),
        {
            "x": x,
            "weight": weight,
            "index": index,
            "scale": scale if whole else None,
            "bias": bias if whole else None,
            "out": parts,
            "tokens": tokens,
            "outputs": outputs,
            "inputs": inputs,
            "packed": packed,
            "rows": rows,
            "RUN": 1 if index is None else width,
            "SPLIT": config.split,
            "SWAP": config.swap,
            "EVEN": packed % config.block_k == 0 and (index is None or inputs % width == 0),
            **sizes(config, x.dtype),
        },
        config.warps,
        config.stages,
    )
    if whole:
        return out, [product]
    total = Launch(
        add_parts_kernel,
        (tiles(out.numel(), PARTS_BLOCK),),
        {
            "parts": parts,
            "scale": scale,
            "bias": bias,
            "out": out,
            "size": out.numel(),
            "outputs": outputs,
            "SPLIT": config.split,
            "BLOCK": PARTS_BLOCK,
        },
        warps=4,
        stages=1,
    )
    return out, [product, total]
