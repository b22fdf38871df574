"""y = x W^T for 2:4 sparse weights of 16 bits, on the sparse tensor cores.

Triton has no product with a 2:4 factor, so the instruction is written out: `mma.sp` of shape
m16n8k32 (PTX ISA 9.7.14.6, sm_80 and later), whose left factor, 16 outputs by 32 inputs, is sparse.
It wants each thread to hold certain entries, and Gluon is where a kernel can say which thread holds
what. Weights are packed in that order (see `esper_kernels.sparse24`): a thread's share of a block
is 16 bytes in a row and a warp's 512, and they go from memory into registers as they are, past
shared memory. Nothing is expanded, for which there would be no time at the speed of the memory.

This is `mma.sync`-class: right for decoding, where memory is what takes the time, and not for
prefill, where Hopper's wgmma has twice its rate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, tiles
from esper_kernels.sparse24 import ROWS

TOKENS = 8  # of one mma.sp: the width of its right factor
# Metadata for weights that do not exist: entries 0 and 1 of each 4. Zero would be no metadata, and
# what mma.sp does with that is undefined (9.7.14.6.1).
ANY_PLACES = gl.constexpr(0x44444444)

# Dimensions of the kernel's tensors: warps, each with inputs of its own; blocks of 16 outputs;
# blocks of 8 tokens; lanes; the 4 registers of a lane's share of a block.


@gluon.constexpr_function
def layout_along(axis, layout):
    """The layout of one dimension of a tensor of five."""
    for dimension in (4, 3, 2, 1, 0):
        if dimension != axis:
            layout = gl.SliceLayout(dimension, layout)
    return layout


@gluon.jit
def along(AXIS: gl.constexpr, SIZE: gl.constexpr, LAYOUT: gl.constexpr):
    """0 to SIZE along one dimension, of size 1 along the other four."""
    place = gl.arange(0, SIZE, layout=layout_along(AXIS, LAYOUT))
    for dimension in gl.static_range(5):
        if dimension != AXIS:
            place = gl.expand_dims(place, dimension)
    return place


@gluon.jit
def multiply(weight, x, total, metadata, SELECTOR: gl.constexpr, TYPE: gl.constexpr):
    """total + weight x for blocks of 32 inputs: one mma.sp for every 4 registers of a thread.

    SELECTOR says whose metadata counts among 4 threads: 0 that of the first two, 1 that of the last
    two. So one word in each thread serves two blocks.
    """
    INSTRUCTION: gl.constexpr = (
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
        + TYPE
        + "."
        + TYPE
        + ".f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9, $10, $11}, {$12, $13, $14, $15}, $16, "
        + SELECTOR
        + ";"
    )
    return gl.inline_asm_elementwise(
        INSTRUCTION,
        "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f,r,r,r,r",
        [weight, x, total, metadata],
        dtype=gl.float32,
        is_pure=False,  # the threads of a warp come by together: it may not move into a branch
        pack=4,
    )


@gluon.jit
def load(values, metadata, x, pair, pairs, row_exists, token_exists, word, words):
    """The share of a thread in a pair of blocks: weights of each, metadata, x of each."""
    stored = row_exists & (pair < pairs)
    inputs = pair * 32 + word  # two numbers a word
    return (
        gl.load(values + pair * 256, mask=stored, other=0),
        gl.load(values + pair * 256 + 128, mask=stored, other=0),
        gl.load(metadata + pair * 32, mask=stored, other=ANY_PLACES),
        gl.load(x + inputs, mask=token_exists & (inputs < words), other=0),
        gl.load(x + inputs + 16, mask=token_exists & (inputs + 16 < words), other=0),
    )


@gluon.jit
def sparse24_kernel(
    x,
    values,
    metadata,
    bias,
    out,
    tokens,
    outputs,
    words,
    pairs,
    TYPE: gl.constexpr,
    WARPS: gl.constexpr,
    ROW_BLOCKS: gl.constexpr,
    TOKEN_BLOCKS: gl.constexpr,
):
    """out (M, N) from x (M, words), values (N / 16, 2 pairs, 32, 4), metadata (N / 16, pairs, 32),
    these as words of 32 bits, and bias (N,) or None.

    A program has 16 ROW_BLOCKS outputs and 8 TOKEN_BLOCKS tokens. Its warps take turns along the
    inputs and their sums are added at the end, in one order, so that many loads are under way
    although there are few programs; and each loads for its next turn before it multiplies.
    """
    LAYOUT: gl.constexpr = gl.BlockedLayout(
        [1, ROW_BLOCKS, TOKEN_BLOCKS, 1, 4], [1, 1, 1, 32, 1], [WARPS, 1, 1, 1, 1], [4, 3, 2, 1, 0]
    )
    pair = along(0, WARPS, LAYOUT)
    row = gl.program_id(0) * ROW_BLOCKS + along(1, ROW_BLOCKS, LAYOUT)
    first = gl.program_id(1) * TOKEN_BLOCKS + along(2, TOKEN_BLOCKS, LAYOUT)
    lane = along(3, 32, LAYOUT)
    register = along(4, 4, LAYOUT)

    # Fragments of W: PTX ISA 9.7.14.6.2.2, as they are packed.
    row_exists = row * 16 < outputs
    blocks = row.to(gl.int64) * pairs
    values += blocks * 256 + lane * 4 + register
    metadata += blocks * 32 + lane
    # Fragments of x: lane 4 g + t has inputs 2 t + 8 r and the next of token g in register r.
    token = first * 8 + lane // 4
    token_exists = token < tokens
    word = lane % 4 + 4 * register
    x += token.to(gl.int64) * words

    total = gl.zeros([WARPS, ROW_BLOCKS, TOKEN_BLOCKS, 32, 4], gl.float32, LAYOUT)
    w0, w1, chosen, x0, x1 = load(
        values, metadata, x, pair, pairs, row_exists, token_exists, word, words
    )
    for _ in range(gl.cdiv(pairs, WARPS)):
        pair += WARPS
        next_w0, next_w1, next_chosen, next_x0, next_x1 = load(
            values, metadata, x, pair, pairs, row_exists, token_exists, word, words
        )
        total = multiply(w0, x0, total, chosen, "0", TYPE)
        total = multiply(w1, x1, total, chosen, "1", TYPE)
        w0, w1, chosen, x0, x1 = next_w0, next_w1, next_chosen, next_x0, next_x1

    # Fragments of the result: lane 4 g + t has in register r output g + 8 (r div 2) of token
    # 2 t + r mod 2 (PTX ISA 9.7.14.5.8).
    result = gl.convert_layout(gl.expand_dims(gl.sum(total, 0), 0), LAYOUT)
    n = row * 16 + lane // 4 + 8 * (register // 2)
    m = first * 8 + 2 * (lane % 4) + register % 2
    if bias is not None:
        result += gl.load(bias + n, mask=n < outputs, other=0).to(gl.float32)
    gl.store(
        out + m.to(gl.int64) * outputs + n,
        result.to(out.dtype.element_ty),
        mask=(m < tokens) & (n < outputs),
    )


def launches(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    outputs: int,
    config: Config,
) -> tuple[Tensor, list[Launch]]:
    """The result (M, outputs) and the launch that fills it.

    x (M, K) is contiguous, of the dtype of the weights, and K is even, since words are read.
    """
    tokens, inputs = x.shape
    out = x.new_empty(tokens, outputs)
    launch = Launch(
        sparse24_kernel,
        (tiles(outputs, config.block_n), tiles(tokens, config.block_m)),
        {
            "x": x.view(torch.int32),
            "values": values.view(torch.int32),
            "metadata": metadata,
            "bias": bias,
            "out": out,
            "tokens": tokens,
            "outputs": outputs,
            "words": inputs // 2,
            "pairs": metadata.shape[1],
            "TYPE": "bf16" if x.dtype == torch.bfloat16 else "f16",
            "WARPS": config.warps,
            "ROW_BLOCKS": config.block_n // ROWS,
            "TOKEN_BLOCKS": config.block_m // TOKENS,
        },
        config.warps,
        config.stages,
    )
    return out, [launch]
