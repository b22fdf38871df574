"""Contract rules of masks on weights: what may be masked, and by which pattern."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from esper.ir.patterns import Pattern
from esper.ir.sparsity import contracted_dim, masks
from esper.plan import Refusal
from esper.propose import ClearMask, FoldMask, GateCells, Proposal, RegrowMask, SetMask

if TYPE_CHECKING:
    from esper.ir.model import Model

_ANY = (SetMask, RegrowMask, GateCells, ClearMask, FoldMask)
_MASKED = (RegrowMask, GateCells, ClearMask, FoldMask)


def known_weight(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-target`, `no-weight`: only a parameter of several dims can be masked."""
    if not isinstance(proposal, _ANY):
        return None
    parameters = dict(model.named_parameters())
    parameter = parameters.get(proposal.tensor)
    if parameter is None:
        first = model.canonical_names().get(proposal.tensor)
        near = [first] if first in parameters else get_close_matches(proposal.tensor, parameters, 1)
        return Refusal(
            "unknown-target",
            f"there is no weight {proposal.tensor}",
            proposal.tensor,
            f"did you mean {near[0]}?" if near else "name a parameter of the model",
        )
    if parameter.ndim < 2 or not parameter.is_floating_point():
        return Refusal(
            "no-weight",
            f"{proposal.tensor} is {parameter.dtype} of {parameter.ndim} dims: no weight matrix",
            proposal.tensor,
            "mask the weight of a linear layer or a convolution",
        )
    return None


def fitting_pattern(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-pattern`, `pattern-size`: groups and blocks must divide the weight."""
    if not isinstance(proposal, SetMask):
        return None
    dim = contracted_dim(model, proposal.tensor) if proposal.dim is None else proposal.dim
    try:
        pattern = Pattern.parse(proposal.pattern, proposal.density, dim)
    except ValueError as error:
        return Refusal(
            "unknown-pattern",
            str(error),
            proposal.tensor,
            "use one of these forms, with no more of a group on than it has",
        )
    why = pattern.misfit(tuple(model.get_parameter(proposal.tensor).shape))
    if not why:
        return None
    return Refusal(
        "pattern-size",
        f"{proposal.tensor} cannot be masked by {proposal.pattern}: {why}",
        proposal.tensor,
        "choose a pattern that divides it, or prune to a multiple first",
    )


def masked_weight(model: Model, proposal: Proposal) -> Refusal | None:
    """`no-mask`: what changes or removes a mask needs one."""
    if not isinstance(proposal, _MASKED) or proposal.tensor in masks(model):
        return None
    return Refusal(
        "no-mask", f"{proposal.tensor} has no mask", proposal.tensor, "propose set-mask first"
    )


def ongoing_regrowth(model: Model, proposal: Proposal) -> Refusal | None:
    """`regrowth-over`: a fraction that fell to zero changes nothing."""
    if not isinstance(proposal, RegrowMask) or not 0 < proposal.until <= model.ecology.tick:
        return None
    return Refusal(
        "regrowth-over",
        f"regrowth of {proposal.tensor} ended at tick {proposal.until}",
        proposal.tensor,
        "fold the mask, or regrow with a later end",
    )


RULES = (known_weight, fitting_pattern, masked_weight, ongoing_regrowth)
