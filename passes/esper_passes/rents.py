"""Which share of a model's parameters and work each region has: what rents are charged for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from esper_passes.cost import macs

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Share:
    """Shares of a whole model, each between 0 and 1.

    Attributes:
        parameters: of its parameter elements.
        flops: of its multiply-accumulates at the shapes of the example inputs.
    """

    parameters: float
    flops: float


def shares(model: Model) -> dict[str, Share]:
    """The share of every region, by ID. Regions that lie in each other count both."""
    elements = sum(parameter.numel() for parameter in model.parameters())
    work = {node.name: macs(node) for node in model.graph.nodes if node.op == "call_function"}
    total = sum(work.values())
    return {
        name: Share(
            phage.parameters / max(elements, 1),
            sum(work.get(node, 0.0) for node in phage.nodes) / max(total, 1.0),
        )
        for name, phage in model.anatomy.phages.items()
    }
