"""y = act(x G^T) * (x U^T), the first two layers of a gated MLP, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.gpu.running import Launch, check_dtype, grouped_tiles, sizes, tiles
from esper_kernels.gpu.tiles import (
    columns_at,
    multiply,
    outputs_of,
    read,
    runs_at,
    swizzle,
    zeros,
)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """An activation of PyTorch's of that name, in float32."""
    if ACTIVATION == "relu":
        # maximum would make 0 of NaN
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "sigmoid":
        return tl.sigmoid(x)
    elif ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))  # 1 / sqrt(2)
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # 0.5 (1 + tanh z) = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def gated_kernel(
    x,
    gate,
    up,
    gate_index,
    up_index,
    gate_scale,
    up_scale,
    out,
    tokens,
    outputs,
    inputs,
    gate_packed,
    up_packed,
    rows,
    RUN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALIKE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out (M, N) from x (M, K), gate (N, gate_packed), up (N, up_packed), each with its index
    (groups, packed / RUN) or None, and its scale (N,) of int8 or None.

    Both products of a tile stay in registers until the activation, so neither is ever stored. Under
    ALIKE both weights keep the same columns and each tile of x is read once for the two.
    """
    tiles_n = tl.cdiv(outputs, rows) * tl.cdiv(rows, BLOCK_N)
    tile_m, tile_n = swizzle(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tiles_n, GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    m_exists = m < tokens
    group, n, n_exists = outputs_of(tile_n, rows, outputs, BLOCK_N)
    if gate_index is not None:
        gate_index += group * (gate_packed // RUN)
        up_index += group * (up_packed // RUN)
    x_rows = x + m.to(tl.int64) * inputs
    gate_rows = gate + n.to(tl.int64) * gate_packed
    up_rows = up + n.to(tl.int64) * up_packed
    gated = zeros(BLOCK_M, BLOCK_N, SWAP)
    linear = zeros(BLOCK_M, BLOCK_N, SWAP)
    gate_runs = runs_at(gate_index, 0, gate_packed, RUN, BLOCK_K)
    up_runs = runs_at(up_index, 0, up_packed, RUN, BLOCK_K)
    for step in range(tl.cdiv(tl.maximum(gate_packed, up_packed), BLOCK_K)):
        position = step * BLOCK_K + tl.arange(0, BLOCK_K)
        columns = columns_at(gate_index, gate_runs, position, RUN, BLOCK_K)
        gate_runs = runs_at(gate_index, step + 1, gate_packed, RUN, BLOCK_K)
        stored = position < gate_packed
        xs = read(x_rows, columns, m_exists, stored & (columns < inputs), EVEN)
        gated = multiply(
            xs, read(gate_rows, position, n_exists, stored, EVEN), gated, SWAP, PRECISION
        )
        if not ALIKE:
            columns = columns_at(up_index, up_runs, position, RUN, BLOCK_K)
            up_runs = runs_at(up_index, step + 1, up_packed, RUN, BLOCK_K)
            stored = position < up_packed
            xs = read(x_rows, columns, m_exists, stored & (columns < inputs), EVEN)
        linear = multiply(
            xs, read(up_rows, position, n_exists, stored, EVEN), linear, SWAP, PRECISION
        )
    if SWAP:
        gated = tl.trans(gated)
        linear = tl.trans(linear)
    if gate_scale is not None:
        gated *= tl.load(gate_scale + n, mask=n_exists, other=0).to(tl.float32)[None, :]
        linear *= tl.load(up_scale + n, mask=n_exists, other=0).to(tl.float32)[None, :]
    total = activate(gated, ACTIVATION) * linear
    tl.store(
        (out + m.to(tl.int64) * outputs)[:, None] + n[None, :],
        total.to(out.dtype.element_ty),
        mask=m_exists[:, None] & n_exists[None, :],
    )


def launches(
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_scale: Tensor | None,
    up_scale: Tensor | None,
    gate_index: Tensor | None,
    up_index: Tensor | None,
    activation: str,
    rows: int | None,
    width: int,
    config: Config,
) -> tuple[Tensor, list[Launch]]:
    """The result (M, N) and the launch that fills it; all tensors are contiguous.

    Without indices both weights are dense. One index tensor given twice means that both weights
    keep the same columns.
    """
    check_dtype(x.dtype)
    (tokens, inputs), (outputs, packed) = x.shape, gate.shape
    rows = rows or outputs
    sparse = gate_index is not None
    even = all(w.shape[1] % config.block_k == 0 for w in (gate, up))
    out = x.new_empty(tokens, outputs)
    tiles_n = grouped_tiles(outputs, rows, config.block_n)
    launch = Launch(
        gated_kernel,
        (tiles(tokens, config.block_m) * tiles_n,),
        {
            "x": x,
            "gate": gate,
            "up": up,
            "gate_index": gate_index,
            "up_index": up_index,
            "gate_scale": gate_scale,
            "up_scale": up_scale,
            "out": out,
            "tokens": tokens,
            "outputs": outputs,
            "inputs": inputs,
            "gate_packed": packed,
            "up_packed": up.shape[1],
            "rows": rows,
            "RUN": width if sparse else 1,
            "ACTIVATION": activation,
            "ALIKE": gate_index is up_index,
            "SWAP": config.swap,
            "EVEN": packed == up.shape[1] and even and (not sparse or inputs % width == 0),
            **sizes(config, x.dtype),
        },
        config.warps,
        config.stages,
    )
    return out, [launch]
