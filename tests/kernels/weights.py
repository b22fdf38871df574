"""Weights of the formats under test."""

from __future__ import annotations

import torch
from torch import Tensor


def two_of_four(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """A random weight with up to 2 entries in 4; some have fewer."""
    width = -(-inputs // 4) * 4
    rank = torch.rand(outputs, width // 4, 4).argsort(-1)
    entries = torch.randint(0, 3, (outputs, width // 4, 1))
    weight = torch.randn(outputs, width) * (rank < entries).view(outputs, width)
    return weight[:, :inputs].to(dtype).contiguous()
