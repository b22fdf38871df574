"""On a CPU, products of integers for all groups of rows in one call of oneDNN (see `grouped`).

Its convolutions of integers read unsigned inputs. So 128 is added to each, and what that adds to
a sum, 128 times the sum of the weights, is taken off by way of the bias. (Its own zero points take
another path for groups, which is a thousand times slower.)
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from esper_kernels.layouts import PLACE, Layouts, as_image, from_image, library
from esper_kernels.prepacked import Prepacked, keeps

_MOST = (1 << 31) // (255 * 127)  # inputs whose products can be added in 32 bits


@cache
def multiplies() -> bool:
    """Whether sums are exact here: without VNNI, oneDNN adds pairs of products in 16 bits."""
    return library() and torch.cpu._is_vnni_supported()


def packs(values: Tensor) -> bool:
    """Whether an int8 weight (N, kept) is multiplied packed."""
    return multiplies() and values.shape[1] <= _MOST and keeps(values)


class _Integers(Layouts):
    """An int8 weight, packed, and what 128 more in each of its inputs adds to each output."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.shifted = values.sum(1, dtype=torch.int32).mul_(128).float()
        self.zeros = torch.zeros_like(self.shifted, dtype=torch.int32)


_layouts: Prepacked[_Integers] = Prepacked(_Integers)


def unsigned(integers: Tensor) -> Tensor:
    """int8 as `multiply` reads it: 128 more, uint8; in the same memory."""
    return integers.view(torch.uint8).bitwise_xor_(128)


def multiply(gathered: Tensor, values: Tensor, scale: Tensor, groups: int, rows: int) -> Tensor:
    """Each group's inputs times the transpose of its part of the weight, scaled.

    Args:
        gathered: (M, groups * kept), `unsigned`, contiguous.
        values: (N, kept), for which `packs` holds; its rows behind whole groups are left out.
        scale: (N,), float32, of each output.
        groups, rows: how many, and of how many outputs each.

    Returns:
        (M, groups * rows), float32.
    """
    whole, layouts = groups * rows, _layouts(values)
    packed = layouts.of(values, groups, rows, len(gathered), _pack)
    own = scale[:whole].contiguous()  # its strides are not looked at
    padding, stride, dilation = PLACE
    return from_image(
        torch.ops.onednn.qconv_pointwise(
            as_image(gathered), 1.0, 0, packed, own, layouts.zeros[:whole],
            layouts.shifted[:whole] * -own, stride, padding, dilation, groups,
            1.0, 0, torch.float32, "none", [], "",
        )
    )  # fmt: skip


def _pack(kernel: Tensor, groups: int, image: list[int]) -> Tensor:
    padding, stride, dilation = PLACE
    ones = torch.ones(len(kernel))
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        kernel, ones, 1.0, 0, stride, padding, dilation, groups, image
    )
    return packed
