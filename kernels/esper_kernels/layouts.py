"""A weight in every layout that oneDNN wanted of it so far.

Which blocks a convolution reads depends on the number of samples, too (on machines tried there are
two layouts for each weight). One in other blocks is rearranged at every call, which can take many
times as long as the product. So layouts are told apart by their descriptors and kept side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

PLACE: tuple[Any, ...] = ([0, 0], [1, 1], [1, 1])  # padding, stride, dilation of a 1x1 convolution

# Sizes, dtype and samples to the descriptor of the layout that they want.
_wanted: dict[tuple[Any, ...], bytes] = {}


@cache
def library() -> bool:
    """Whether PyTorch was built with oneDNN, and has what tells its layouts apart."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")


class Layouts:
    """One weight, packed. It holds no reference to the weight itself."""

    def __init__(self) -> None:
        self._packed: dict[bytes, Tensor] = {}

    def of(
        self, weight: Tensor, groups: int, rows: int, samples: int, pack: Callable[..., Tensor]
    ) -> Tensor:
        """The weight as it is read for that many samples.

        Args:
            weight: (N, kept), the same at every call.
            groups, rows: how many whole groups it has, and of how many outputs each.
            samples: how many rows its input has.
            pack: `pack(kernel, groups, image)` for kernel (groups * rows, kept, 1, 1) and the
                input's shape.
        """
        kept = weight.shape[1]
        key = (groups, rows, kept, weight.dtype, samples)
        layout = _wanted.get(key)
        if layout is None or layout not in self._packed:
            kernel = weight.detach()[: groups * rows, :, None, None]
            packed = pack(kernel, groups, [1, groups * kept, samples, 1])
            layout = _wanted[key] = _descriptor(packed)
            self._packed.setdefault(layout, packed)
        return self._packed[layout]


def _descriptor(packed: Tensor) -> bytes:
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


def as_image(rows: Tensor) -> Tensor:
    """(M, channels), contiguous, as an image of M pixels in a row, channels last."""
    return rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def from_image(image: Tensor) -> Tensor:
    """The way back."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[2], -1)
