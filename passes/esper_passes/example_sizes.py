"""Sizes that values have on the example inputs, where a graph has symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.binder import binder

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Batch


class ExampleSizes:
    """Sizes of a model's values for one call.

    Args:
        model: never changed.
        inputs: the call; without it symbols stand for the sizes that the model was traced with.
    """

    def __init__(self, model: Model, inputs: Batch | None) -> None:
        self._known: dict[Any, int] = {}
        if inputs is None:
            return
        args, kwargs = inputs
        placeholders = model.graph.find_nodes(op="placeholder")
        for node, value in zip(placeholders, binder(model)(*args, **kwargs), strict=True):
            if isinstance(value, torch.Tensor):
                for symbolic, size in zip(node.meta["val"].shape, value.shape, strict=True):
                    if not isinstance(symbolic, int) and symbolic.node.expr.is_Symbol:
                        self._known[symbolic.node.expr] = size

    def of(self, node: fx.Node) -> list[int]:
        """Sizes of a node's tensor value."""
        return [self._number(size) for size in node.meta["val"].shape]

    def tokens(self, node: fx.Node) -> int:
        """Rows of a node's value, all dims but the last together."""
        return int(torch.Size(self.of(node)[:-1]).numel())

    def _number(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        value = size.node.expr.subs(self._known)
        return int(value) if value.is_Integer else int(size.node.hint)
