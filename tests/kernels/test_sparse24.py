"""The format of 2:4 weights: there and back, and what `mma.sp` makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_kernels.sparse24 import Sparse24, gather, unpack
from tests.kernels.mma_sp import mma_sp
from tests.kernels.ptx import bfloat16, float16
from tests.kernels.weights import two_of_four

dtypes = st.sampled_from([torch.float16, torch.bfloat16])


@given(st.integers(1, 70), st.integers(1, 200), dtypes, st.integers(0, 2**16))
def test_unpacking_gives_the_same_bits(
    outputs: int, inputs: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = two_of_four(outputs, inputs, dtype)
    packed = Sparse24.pack(weight)
    # -0.0 counts as no entry
    there_and_back = packed.unpack() + 0.0
    assert torch.equal(there_and_back.view(torch.int16), (weight + 0.0).view(torch.int16))
    assert torch.equal(gather(weight, packed.metadata), packed.values)


def test_it_takes_nine_sixteenths_of_the_memory() -> None:
    weight = two_of_four(64, 256, torch.float16)
    packed = Sparse24.pack(weight)
    assert 16 * (packed.values.nbytes + packed.metadata.nbytes) == 9 * weight.nbytes


def test_a_third_entry_is_refused_with_its_place() -> None:
    weight = torch.zeros(3, 16, dtype=torch.float16)
    weight[1, 4:7] = 1
    with pytest.raises(ValueError, match=r"row 1 has more than 2 entries in columns 4 to 7"):
        Sparse24.pack(weight)


@pytest.mark.parametrize("weight", [torch.zeros(2, 8), torch.zeros(8, dtype=torch.float16)])
def test_other_tensors_are_refused(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="matrices of float16 or bfloat16"):
        Sparse24.pack(weight)


@settings(max_examples=15)
@given(st.integers(1, 40), st.integers(1, 140), dtypes, st.integers(0, 2**16))
def test_fragments_multiply_to_the_product(
    outputs: int, inputs: int, dtype: torch.dtype, seed: int
) -> None:
    """Blocks and words as they are stored, through the instruction as the PTX ISA has it."""
    torch.manual_seed(seed)
    weight, x = two_of_four(outputs, inputs, dtype), torch.randn(8, inputs).to(dtype)
    packed = Sparse24.pack(weight)
    rows, blocks = packed.values.shape[:2]
    words = packed.values.view(torch.int32).numpy().view("u4")
    metadata = packed.metadata.numpy().view("u4")
    wide = torch.zeros(8, 32 * blocks, dtype=dtype)
    wide[:, :inputs] = x
    x_words = wide.view(torch.int32).numpy().view("u4")
    number = bfloat16 if dtype == torch.bfloat16 else float16
    # lane 4 g + t has in register i the inputs 2 t + 8 i and the next of token g
    lane, register = np.arange(32)[:, None], np.arange(4)
    result = np.zeros((8, 16 * rows))
    for row in range(rows):
        total = np.zeros((32, 4), "f4")
        for block in range(blocks):
            b = x_words[lane // 4, 16 * block + lane % 4 + 4 * register]
            word = metadata[row, block // 2]
            total = mma_sp(words[row, block], b, total, word, block % 2, number)
        # and of the result outputs g and g + 8 of tokens 2 t and the next
        result[2 * (lane % 4) + register % 2, 16 * row + lane // 4 + 8 * (register // 2)] = total
    expected = x.double() @ weight.double().T
    found = torch.from_numpy(result[:, :outputs])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_unpack_ignores_what_lies_outside() -> None:
    weight = two_of_four(5, 9, torch.bfloat16)
    packed = Sparse24.pack(weight)
    assert unpack(packed.values, packed.metadata, 5, 9).shape == (5, 9)
