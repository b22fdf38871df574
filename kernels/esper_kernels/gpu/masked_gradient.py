"""dW = dy^T x, but only where a weight that is sparse in runs keeps its entries."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, check_dtype, grouped_tiles, sizes, tiles
from esper_kernels.gpu.tiles import columns_at, outputs_of, runs_at, swizzle


@triton.jit
def masked_gradient_kernel(
    grad,
    x,
    index,
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
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out (N, packed) from grad (M, N), x (M, K) and index (groups, packed / RUN).

    A program has BLOCK_N outputs of one group and BLOCK_K packed inputs, and walks over the tokens;
    the columns of x that it gathers are the same in every step.
    """
    tiles_n = tl.cdiv(outputs, rows) * tl.cdiv(rows, BLOCK_N)
    tile_n, tile_k = swizzle(tl.program_id(0), tiles_n, tl.cdiv(packed, BLOCK_K), GROUP)
    group, n, n_exists = outputs_of(tile_n, rows, outputs, BLOCK_N)
    position = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    index += group * (packed // RUN)
    runs = runs_at(index, tile_k, packed, RUN, BLOCK_K)
    columns = columns_at(index, runs, position, RUN, BLOCK_K)
    stored = position < packed
    inside = stored & (columns < inputs)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for step in range(tl.cdiv(tokens, BLOCK_M)):
        m = step * BLOCK_M + tl.arange(0, BLOCK_M)
        m_exists = m < tokens
        row = m.to(tl.int64)
        dy = tl.load(  # (outputs, tokens): transposed as it is read
            grad + n[:, None] + (row * outputs)[None, :],
            mask=n_exists[:, None] & m_exists[None, :],
            other=0,
        )
        xs = tl.load(
            x + (row * inputs)[:, None] + columns[None, :],
            mask=m_exists[:, None] & inside[None, :],
            other=0,
        )
        total = tl.dot(dy, xs, total, input_precision=PRECISION)
    tl.store(
        (out + n.to(tl.int64) * packed)[:, None] + position[None, :],
        total.to(out.dtype.element_ty),
        mask=n_exists[:, None] & stored[None, :],
    )


def launches(
    grad: Tensor, x: Tensor, index: Tensor, rows: int, width: int, config: Config
) -> tuple[Tensor, list[Launch]]:
    """The result (N, kept * width) and the launch that fills it; grad (M, N), x (M, K).

    A tile is `block_m` packed inputs by `block_n` outputs, and sums are over `block_k` tokens at a
    time.
    """
    check_dtype(grad.dtype)
    (tokens, outputs), inputs = grad.shape, x.shape[1]
    packed = index.shape[1] * width
    out = grad.new_empty(outputs, packed)
    tiles_n = grouped_tiles(outputs, rows, config.block_n)
    launch = Launch(
        masked_gradient_kernel,
        (tiles_n * tiles(packed, config.block_m),),
        {
            "grad": grad,
            "x": x,
            "index": index,
            "out": out,
            "tokens": tokens,
            "outputs": outputs,
            "inputs": inputs,
            "packed": packed,
            "rows": rows,
            "RUN": width,
            **sizes(config, grad.dtype),
            "BLOCK_M": config.block_k,
            "BLOCK_K": config.block_m,
        },
        config.warps,
        config.stages,
    )
    return out, [launch]
