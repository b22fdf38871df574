"""What `mma.sp.m16n8k32` does with the registers of a warp, after the PTX ISA and nothing else.

Sections are those of PTX ISA 8.7: 9.7.14.6.1 on what metadata means, 9.7.14.6.2.2 on which thread
holds what of a sparse factor and of its metadata, 9.7.14.5.8 on the result, whose form is that of
m16n8k16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]


def halves(words: Words) -> npt.NDArray[np.uint16]:
    """(..., registers) to (..., 2 * registers), the low half of a register first."""
    return np.stack([words & 0xFFFF, words >> 16], -1).reshape(*words.shape[:-1], -1).astype("u2")


def sparse_factor(a: Words, metadata: Words, selector: int) -> npt.NDArray[np.int32]:
    """Which of a warp's entries lies where in the 16 x 32 factor: numbers from 1 on, 0 for none.

    a (32 lanes, 4 registers); metadata (32,). An entry's number is 1 + 8 lane + its place among the
    8 halves of the lane.
    """
    where = np.zeros((16, 32), np.int32)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):  # a0 to a7
            # Rows alternate between pairs; from a4 on come columns 16 to 31 (9.7.14.6.2.2).
            row = group if i % 4 < 2 else group + 8
            first = thread * 4 + (16 if i >= 4 else 0)
            # The threads that the selector names hold the metadata of 16 columns each: the first
            # that of columns 0 to 15; low bits for the upper rows.
            holder = (lane & ~3) + 2 * selector + first // 16
            bits = int(metadata[holder]) >> (16 * (row // 8))
            chunk = bits >> (4 * (first % 16 // 4)) & 0xF
            first_place, second_place = chunk & 3, chunk >> 2
            assert first_place < second_place, "ordered_metadata asks for order"
            column = first + (second_place if i % 2 else first_place)
            where[row, column] = 1 + 8 * lane + i
    return where


def mma_sp(
    a: Words,
    b: Words,
    c: Floats,
    metadata: Words,
    selector: int,
    number: Callable[[npt.NDArray[np.uint16]], Floats],
) -> Floats:
    """d (32, 4) of a warp: a (32, 4), b (32, 4), c (32, 4), metadata (32,).

    `number` reads a half of a register as float16 or bfloat16.
    """
    entries = number(halves(a)).ravel()
    where = sparse_factor(a, metadata, selector)
    left = np.where(where > 0, entries[where - 1], 0).astype(np.float64)
    right = np.zeros((32, 8))
    b_halves = number(halves(b))
    for lane in range(32):
        for i in range(8):
            row = lane % 4 * 2 + i % 2 + 8 * (i // 2)
            right[row, lane >> 2] = b_halves[lane, i]
    product = left @ right
    d = np.empty_like(c)
    for lane in range(32):
        for i in range(4):
            row = (lane >> 2) + 8 * (i // 2)
            d[lane, i] = c[lane, i] + product[row, lane % 4 * 2 + i % 2]
    return d
