"""Axes that sleep: every dim that they live in belongs to a tensor that is packed for a kernel.

Packing rearranges a tensor (`esper.state.Rearrange`): some dims stay what they are, perhaps at
another place, others become something that is no axis. An axis remembers the dims that are gone as
`-1 - dim`. Where nothing of it is left in the graph it keeps its ID and its units, and is the same
axis again once its tensor is unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.ir.anatomy import Identities


def is_gone(dim: int) -> bool:
    """Whether the dim of a member is one that its tensor had before it was packed."""
    return dim < 0


def rearrange(identities: Identities, tensor: str, dims: Sequence[int | None]) -> None:
    """Members in a tensor go where its dims go.

    Args:
        identities: changed in place.
        tensor: first name of what was rearranged.
        dims: the old dim that each new dim is, None for one that is no old one.
    """
    for identity in identities.axes.values():
        if any(name == tensor for name, _, _ in identity.members):
            identity.members = frozenset(
                (name, _moved(dim, dims) if name == tensor else dim, leaf)
                for name, dim, leaf in identity.members
            )


def _moved(dim: int, dims: Sequence[int | None]) -> int:
    if not is_gone(dim):
        return dims.index(dim) if dim in dims else -1 - dim
    before = -1 - dim
    return before if before < len(dims) and dims[before] is None else dim


def sleeping(identities: Identities, found: Set[str], living: Set[str]) -> dict[str, str]:
    """Axes that no analysis sees, with the packed tensor in which each sleeps.

    Args:
        found: IDs of those that one does see.
        living: names of the tensors of the graph.
    """
    return {
        name: min(tensors)
        for name, identity in identities.axes.items()
        if name not in found
        and (tensors := {t for t, dim, _ in identity.members if is_gone(dim) and t in living})
    }
