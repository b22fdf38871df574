"""The interpreter tells of programs that write to one place."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def overlapping(out, STRIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    place = tl.program_id(0) * STRIDE + tl.arange(0, 4)
    tl.store(out + place, tl.program_id(0))


def test_programs_that_overlap_are_refused() -> None:
    out = torch.zeros(8, dtype=torch.int32)
    overlapping[(2,)](out, STRIDE=4)
    assert out.tolist() == [0] * 4 + [1] * 4
    with pytest.raises(Exception, match="write to one place"):
        overlapping[(2,)](out, STRIDE=3)
