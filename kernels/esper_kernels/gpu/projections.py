"""q, k, v = x W^T in one kernel that stores each head's rows side by side."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, check_dtype, grouped_tiles, sizes, tiles
from esper_kernels.gpu.tiles import outputs_of, product, swizzle


@triton.jit
def projections_kernel(
    x,
    weight,
    bias,
    q,
    k,
    v,
    tokens,
    outputs,
    inputs,
    rows,
    length,
    heads,
    kv_heads,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """q (B, heads, S, D), k and v (B, kv_heads, S, D) from x (B S, K) and weight (N, K).

    S is `length`, D is HEAD_SIZE. Groups of `rows` outputs lie in one of the three, so that a tile
    has one place to go. Attention wants its operands laid out like this: storing them so costs
    nothing here, and a transpose of each of the three afterwards.
    """
    tiles_n = tl.cdiv(outputs, rows) * tl.cdiv(rows, BLOCK_N)
    tile_m, tile_n = swizzle(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tiles_n, GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_exists = m < tokens
    group, n, n_exists = outputs_of(tile_n, rows, outputs, BLOCK_N)
    total = product(
        x,
        weight,
        None,
        m,
        m_exists,
        n,
        n_exists,
        inputs,
        inputs,
        0,
        tl.cdiv(inputs, BLOCK_K),
        1,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        SWAP,
        EVEN,
        PRECISION,
    )
    if bias is not None:
        total += tl.load(bias + n, mask=n_exists, other=0).to(tl.float32)[None, :]
    first = group * rows // HEAD_SIZE  # head that the group starts with, counted over all three
    if first < heads:
        out = q
        before = 0
        own = heads
    elif first < heads + kv_heads:
        out = k
        before = heads
        own = kv_heads
    else:
        out = v
        before = heads + kv_heads
        own = kv_heads
    head = n // HEAD_SIZE - before
    place = (m // length).to(tl.int64) * own * length + m % length
    column = head.to(tl.int64) * length * HEAD_SIZE + n % HEAD_SIZE
    tl.store(
        out + (place * HEAD_SIZE)[:, None] + column[None, :],
        total.to(out.dtype.element_ty),
        mask=m_exists[:, None] & n_exists[None, :],
    )


def launches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    heads: int,
    kv_heads: int,
    head_size: int,
    config: Config,
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """q, k, v and the launch that fills them; x (B, S, K) and weight are contiguous."""
    check_dtype(x.dtype)
    batch, length, inputs = x.shape
    tokens, outputs = batch * length, weight.shape[0]
    rows = math.gcd(heads, kv_heads) * head_size
    q, k, v = (x.new_empty(batch, h, length, head_size) for h in (heads, kv_heads, kv_heads))
    launch = Launch(
        projections_kernel,
        (tiles(tokens, config.block_m) * grouped_tiles(outputs, rows, config.block_n),),
        {
            "x": x,
            "weight": weight,
            "bias": bias,
            "q": q,
            "k": k,
            "v": v,
            "tokens": tokens,
            "outputs": outputs,
            "inputs": inputs,
            "rows": rows,
            "length": length,
            "heads": heads,
            "kv_heads": kv_heads,
            "HEAD_SIZE": head_size,
            "SWAP": config.swap,
            "EVEN": inputs % config.block_k == 0,
            **sizes(config, x.dtype),
        },
        config.warps,
        config.stages,
    )
    return (q, k, v), [launch]
