"""What a lowered node was lowered from, kept in its metadata so that it can be raised again."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

_KEY = "origin"


class Origin(NamedTuple):
    """One call that a kernel took over.

    Attributes:
        name: of its node.
        op: the op's name, as `esper.ir.codec.encode_target` writes it.
        reads: names of those of the calls before it that it reads, in the order of its arguments.
        module, source: where it stood in the original code.
        tensors: names of tensors that it read and that are no more.
        froze: whether its weight trained before, and no longer does.
    """

    name: str
    op: str
    reads: tuple[str, ...] = ()
    module: str = ""
    source: str = ""
    tensors: tuple[str, ...] = ()
    froze: bool = False


def origin_of(node: fx.Node) -> tuple[Origin, ...]:
    """The calls that a node was lowered from, in graph order; empty where it was not lowered."""
    found: tuple[Origin, ...] = node.meta.get(_KEY, ())
    return found


def set_origin(node: fx.Node, origin: tuple[Origin, ...]) -> None:
    """Remember what a node was lowered from; forget it where that is nothing."""
    node.meta.pop(_KEY, None)
    if origin:
        node.meta[_KEY] = origin
