"""Pieces of kernels: which tile a program computes, what it reads, how it multiplies.

Names of sizes, here and in every kernel: `tokens` M, `outputs` N and `inputs` K are those of the
layer, `packed` is the width of a row of weights as stored (K, or `kept * RUN` when sparse in runs).
A program computes BLOCK_M x BLOCK_N outputs, BLOCK_K packed inputs at a time.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def contiguous(run, block):
    """Columns that surely lie side by side from a multiple of this on: a power of two."""
    return min(run & -run, block)


@triton.jit
def swizzle(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """(m, n) of a program's tile.

    Programs that run at one time cover GROUP rows of tiles: a block of the output that is about as
    high as wide needs the fewest bytes of x and of weights, and those then come from L2.
    """
    wide = GROUP * tiles_n
    first = program // wide * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    return first + program % wide % high, program % wide // high


@triton.jit
def outputs_of(tile, rows, outputs, BLOCK_N: tl.constexpr):
    """(group, outputs, which of them exist) of a tile; none crosses a group of `rows` outputs."""
    per_group = tl.cdiv(rows, BLOCK_N)
    group = tile // per_group
    n = group * rows + tile % per_group * BLOCK_N + tl.arange(0, BLOCK_N)
    return group, n, n < tl.minimum((group + 1) * rows, outputs)


@triton.jit
def runs_at(index, step, packed, RUN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Numbers of the runs behind the packed inputs of a step; one scalar if a run spans them all,
    and any if all columns are kept (`index` None).

    Loops ask for the next step's numbers and carry them over: were they loaded in the step that
    needs them, the pipeliner would spend half of its stages on them, and keep half as many bytes of
    x and weights in flight.
    """
    if index is None:
        return step
    else:
        position = step * BLOCK_K
        if RUN % BLOCK_K != 0:
            position += tl.arange(0, BLOCK_K)
        return tl.load(index + position // RUN, mask=position < packed, other=0)


@triton.jit
def columns_at(index, runs, position, RUN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns of x behind packed inputs.

    The hint is what makes loads of x 16 bytes wide: the compiler cannot see that what the index
    holds are numbers of runs. It holds because every step starts at a multiple of BLOCK_K.
    """
    if index is None:
        return position
    else:
        together: tl.constexpr = contiguous(RUN, BLOCK_K)
        columns = runs * RUN + position % RUN
        return tl.max_contiguous(tl.multiple_of(columns, together), together)


@triton.jit
def read(rows, columns, exist, inside, EVEN: tl.constexpr):
    """A tile at (rows, columns): pointers to rows' starts, and zeros for what does not exist.

    EVEN says that all columns exist, which spares a mask for each load.
    """
    mask = exist[:, None] if EVEN else exist[:, None] & inside[None, :]
    return tl.load(rows[:, None] + columns[None, :], mask=mask, other=0)


@triton.jit
def zeros(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr):
    """An accumulator for `multiply`."""
    if SWAP:
        return tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        return tl.zeros((BLOCK_M, BLOCK_N), tl.float32)


@triton.jit
def multiply(x, weight, total, SWAP: tl.constexpr, PRECISION: tl.constexpr):
    """total + x weight^T, with `total` transposed under SWAP.

    SWAP makes the weights the left factor. With few tokens it is the factor with at least the 64
    rows that Hopper's wgmma asks for, and x fills the narrow side that may be 8 or 16 wide.
    """
    weight = weight.to(x.dtype)  # int8 fits into 16 bits exactly
    if SWAP:
        return tl.dot(weight, tl.trans(x), total, input_precision=PRECISION)
    else:
        return tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)


@triton.jit
def product(
    x,
    weight,
    index,
    m,
    m_exists,
    n,
    n_exists,
    inputs,
    packed,
    first,
    last,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x W^T over the steps from `first` to `last`, (BLOCK_M, BLOCK_N) in float32.

    x (M, inputs) and weight (N, packed) are row-major; `index` is the row of this group, or None
    when every column is kept. The loop's loads become cp.async, `num_stages` - 1 steps ahead.
    """
    x_rows = x + m.to(tl.int64) * inputs
    w_rows = weight + n.to(tl.int64) * packed
    total = zeros(BLOCK_M, BLOCK_N, SWAP)
    runs = runs_at(index, first, packed, RUN, BLOCK_K)
    for step in range(first, last):
        position = step * BLOCK_K + tl.arange(0, BLOCK_K)
        columns = columns_at(index, runs, position, RUN, BLOCK_K)
        runs = runs_at(index, step + 1, packed, RUN, BLOCK_K)
        stored = position < packed
        w = read(w_rows, position, n_exists, stored, EVEN)
        total = multiply(
            read(x_rows, columns, m_exists, stored & (columns < inputs), EVEN),
            w,
            total,
            SWAP,
            PRECISION,
        )
    if SWAP:
        total = tl.trans(total)
    return total
