"""Blast radius: for the same predicted gain the smaller change goes first.

Micro-surgery before amputation: a proposal that touches less harms less when it was wrong, and
leaves more to learn from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from esper.propose import Proposal

if TYPE_CHECKING:
    from esper.ir.model import Model

GAIN = "gain"  # the figure of the evidence that predicts what a proposal brings


def blast_radius(model: Model, proposal: Proposal) -> int:
    """Elements of parameters that a proposal touches: of its regions, or of the units it names.

    Of an axis whose units a proposal does not name it touches all that the axis lives in. A
    target that holds no parameters, such as a slot, counts nothing.
    """
    units: tuple[int, ...] = tuple(getattr(proposal, "units", ()))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    radius = 0
    for target in dict.fromkeys(proposal.targets):
        phage, axis = model.anatomy.phages.get(target), model.anatomy.axes.get(target)
        if phage is not None:
            radius += phage.parameters
        elif axis is not None:
            held = sum(sizes.get(tensor, 0) for tensor in {tensor for tensor, _ in axis.members})
            radius += held * len(units) // axis.size if units else held
    return radius


def smallest_first(model: Model, proposals: Iterable[Proposal]) -> list[Proposal]:
    """By predicted gain (evidence `gain`, 0 where none is given), then by blast radius.

    Gains that agree to three significant digits are the same: a prediction is no more exact.
    """

    def rank(proposal: Proposal) -> tuple[float, int]:
        gain = float(f"{float(proposal.evidence.get(GAIN, 0.0)):.3g}")
        return -gain, blast_radius(model, proposal)

    return sorted(proposals, key=rank)
