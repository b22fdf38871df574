"""Masks of weights in a model: found in its graph, so that what is said is what is computed.

A masked weight is read as `where(mask, weight, 0)`: entries that are off are never used, whatever
they hold, and have zero gradients. The mask is a buffer that shares the axes of its weight, and so
follows every cut and growth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from esper.ir.patterns import Pattern
from esper.ir.weights import MASK, weight_of

if TYPE_CHECKING:
    from esper.ir.ecology import Sparsity
    from esper.ir.model import Model


@dataclass(frozen=True)
class Mask:
    """A mask that lives.

    Attributes:
        life: what was asked for.
        value: the buffer.
        reads: names of the `where` nodes that apply it.
    """

    life: Sparsity
    value: torch.Tensor
    reads: tuple[str, ...]

    @property
    def pattern(self) -> Pattern:
        """The pattern that was asked for."""
        return Pattern.parse(self.life.pattern, self.life.density, self.life.dim)

    @property
    def intact(self) -> bool:
        """Whether the mask has its pattern still: a cut through a group breaks it."""
        return self.pattern.fits(self.value)

    @property
    def density(self) -> float:
        """Share of entries that are on."""
        return float(self.value.float().mean())


def masks(model: Model) -> dict[str, Mask]:
    """Living masks by the name of their weight."""
    found: dict[str, Mask] = {}
    nodes = model.nodes
    for tensor, life in model.ecology.sparsity().items():
        value = model.tensor(life.mask) if _lives(model, life.mask) else None
        if value is None:
            continue
        reads = {
            user.name: None
            for read in model.readers().get(life.mask, ())
            for user in nodes[read].users
            if user.target is MASK
        }
        found[tensor] = Mask(life, value, tuple(reads))
    return found


def _lives(model: Model, name: str) -> bool:
    return name in {n for n, _ in model.named_buffers()}


def contracted_dim(model: Model, tensor: str) -> int:
    """The dim of a weight that the layers reading it contract; 1 where they do not say."""
    nodes = model.nodes
    for read in model.readers().get(tensor, ()):
        users = [nodes[read], *(u for u in nodes[read].users if u.target is MASK)]
        for user in (reader for node in users for reader in node.users):
            found = weight_of(user)
            if found is not None and found[0] is nodes[read]:
                return found[1]
    return 1


def owner(model: Model, tensor: str) -> str:
    """The innermost phage that reads a tensor; empty where none does."""
    readers = {node.name for node in _readers(model, tensor)}
    holding = [p for p in model.anatomy.phages.values() if not readers.isdisjoint(p.nodes)]
    return min(holding, key=lambda phage: (len(phage.nodes), phage.id)).id if holding else ""


def _readers(model: Model, tensor: str) -> list[fx.Node]:
    nodes = model.nodes
    direct = [u for read in model.readers().get(tensor, ()) for u in nodes[read].users]
    return [node for user in direct for node in (user.users if user.target is MASK else (user,))]
