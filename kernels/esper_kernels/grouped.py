"""On a CPU, the products of all groups of rows in one call of oneDNN, on a weight packed for it.

A 1x1 convolution with G groups is G matrix products side by side: each group of outputs has its own
inputs as channels, and the samples are pixels. oneDNN packs its weight in blocks once and then
multiplies all groups without a copy, which neither a batch of products nor a call for each group
does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.layouts import PLACE, Layouts, as_image, from_image, library
from esper_kernels.precision import FLOATING, product_type
from esper_kernels.prepacked import Prepacked, keeps


def packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is multiplied packed with inputs of a dtype; one that trains is not."""
    return weight.dtype == dtype and dtype in FLOATING and library() and keeps(weight)


_layouts: Prepacked[Layouts] = Prepacked(lambda weight: Layouts())


def multiply(
    gathered: Tensor, weight: Tensor, groups: int, rows: int, bias: Tensor | None
) -> Tensor:
    """Each group's inputs times the transpose of its part of the weight.

    Args:
        gathered: (M, groups * kept), contiguous, in `product_type` of the weight's.
        weight: (N, kept), for which `packs` holds; its rows behind whole groups are left out.
        groups, rows: how many, and of how many outputs each.
        bias: (groups * rows,) in the type of `gathered`, or none.

    Returns:
        (M, groups * rows), in that type.
    """
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    packed = _layouts(weight).of(weight, groups, rows, len(gathered), _pack)
    return from_image(
        torch.ops.mkldnn._convolution_pointwise(
            as_image(gathered), packed, bias, *PLACE, groups, "none", [], ""
        )
    )


def _pack(kernel: Tensor, groups: int, image: list[int]) -> Tensor:
    wide = kernel.to(product_type(kernel.dtype))
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(wide, *PLACE, groups, image)
    return packed
