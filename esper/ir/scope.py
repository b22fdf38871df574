"""What a verification looks at: the whole model, or what one change can have broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Change:
    """What happened since the last verification.

    Attributes:
        nodes: names of nodes whose arguments or values changed.
        axes: IDs of the axes that lost units, where units left and nothing else happened: no node
            came or went, no tensor was made, dropped or replaced. None after any other change.
        tensors: names of tensors that were replaced or indexed.
        evaluated: of `nodes`, those whose recorded value was computed from their operands just now.
    """

    nodes: frozenset[str]
    axes: frozenset[str] | None = None
    tensors: frozenset[str] = frozenset()
    evaluated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scope:
    """What the checks look at.

    Attributes:
        nodes: in graph order: all nodes, or the changed ones and their consumers.
        axes: IDs of axes to check; None for everything that the graph and the axes say.
        tensors: names of tensors to check besides those of the axes.
        evaluated: names of nodes whose values need not be computed again.
    """

    nodes: tuple[fx.Node, ...]
    axes: frozenset[str] | None = None
    tensors: frozenset[str] = frozenset()
    evaluated: frozenset[str] = frozenset()

    @property
    def local(self) -> bool:
        """Whether only units left some axes, so that all the rest is as it was verified."""
        return self.axes is not None

    @classmethod
    def of(cls, model: Model, change: Change | None) -> Scope:
        """All of a model, or what a change can have broken."""
        if change is None:
            return cls(tuple(model.graph.nodes))
        changed = [node for node in model.graph.nodes if node.name in change.nodes]
        reached = {*changed, *(user for node in changed for user in node.users)}
        # fx nodes compare by position in the graph.
        return cls(tuple(sorted(reached)), change.axes, change.tensors, change.evaluated)

    def graph_nodes(self, model: Model) -> tuple[fx.Node, ...]:
        """Nodes whose place in the graph and whose records are checked."""
        return self.nodes if self.local else tuple(model.graph.nodes)

    def atoms(self, model: Model) -> list[int]:
        """Atoms of the axes to check, in a local scope."""
        axes = model.anatomy.axes
        return [axes[name].atom for name in sorted(self.axes or ()) if name in axes]
