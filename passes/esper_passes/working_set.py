"""How much memory a model reads between two calls of one of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from esper.ir.model import Model

_ROWS_ALONE = (torch.ops.aten.embedding.default,)  # read a few rows of a table, not all of it
# Enough to drive a layer out of the caches of one core (an L2 has a few MiB at most), and twice the
# L2 of an H100 (50 MB).
_MOST = {"cpu": 32 << 20, "cuda": 128 << 20}


def working_set(model: Model, device: str) -> int:
    """Bytes of the tensors that a forward pass reads whole, as a power of two, capped by device.

    Larger models, whose layers find their weights in no cache, are all alike.
    """
    tensors: dict[str, Tensor] = {}
    for node in model.graph.find_nodes(op="get_attr"):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not _is_table(node):
            tensors[str(node.target)] = value
    size = sum(value.nbytes for value in tensors.values())
    most = _MOST.get(device, _MOST["cpu"])
    return min(most, 1 << max(0, size - 1).bit_length())


def _is_table(node: fx.Node) -> bool:
    return all(user.target in _ROWS_ALONE and user.args[0] is node for user in node.users)
