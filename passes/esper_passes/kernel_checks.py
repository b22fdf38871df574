"""Checks of what the ops of `esper_kernels` read: indices lead into the input, scales scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import fx

from esper_kernels.sparse24 import places

if TYPE_CHECKING:
    from esper.ir.model import Model

Check = Callable[["Model", fx.Node], Iterator[str]]


def runs(index: int, run: int) -> Check:
    """Each group of rows reads runs of the input, each once and in order; none without an index.

    Args:
        index, run: positions of those arguments.
    """

    def check(model: Model, node: fx.Node) -> Iterator[str]:
        read: Any = node.args[index]
        if read is None:
            return
        tensor = model.tensor(str(read.target)) if read.op == "get_attr" else None
        if tensor is None:
            yield f"the index %{read.name} is no tensor of the model"
            return
        args: list[Any] = list(node.args)
        size = args[run]
        last = -(-int(args[0].meta["val"].shape[-1]) // size) - 1
        if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= last:
            yield f"{read.target} names runs of {size} inputs beyond the last, {last}"
        if bool((tensor.diff(dim=1) <= 0).any()):
            yield f"{read.target} has runs that do not ascend"

    return check


def two_of_four(model: Model, node: fx.Node) -> Iterator[str]:
    """Metadata name two different entries of each four, in order."""
    read: Any = node.args[2]
    tensor = model.tensor(str(read.target)) if read.op == "get_attr" else None
    if tensor is None:
        yield f"the metadata %{read.name} are no tensor of the model"
        return
    first, second = places(tensor).unbind(-1)
    if bool((first >= second).any()):
        yield f"{read.target} has entries that do not ascend within their four"


def scale(position: int) -> Check:
    """Scales of int8 weights are positive and finite.

    Args:
        position: of the scales among the arguments.
    """

    def check(model: Model, node: fx.Node) -> Iterator[str]:
        read: Any = node.args[position]
        tensor = None if read is None else model.tensor(str(read.target))
        if tensor is not None and not bool(((tensor > 0) & tensor.isfinite()).all()):
            yield f"{read.target} holds a scale that is no positive number"

    return check


def both(*checks: Check) -> Check:
    """All of several checks."""

    def check(model: Model, node: fx.Node) -> Iterator[str]:
        for each in checks:
            yield from each(model, node)

    return check


def nothing(model: Model, node: fx.Node) -> Iterator[str]:
    """For ops that read nothing packed."""
    yield from ()
