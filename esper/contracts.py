"""Boundary contracts: what may change where, as rules with codes.

A rule looks at a proposal and the anatomy, never at tensors, and answers with a refusal that
names the rule, the place and a remedy. The table is explicit; every rule has a test that makes
it fire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from esper.ecology import order, sparsity
from esper.ecology import rules as ecology
from esper.ir import pins
from esper.plan import Refusal
from esper.propose import (
    AddBranch,
    Deepen,
    DequantizeLayers,
    DropRegion,
    FuseConvBN,
    KeepVocabulary,
    LowerAttentionProjections,
    LowerGatedMlp,
    LowerLinear,
    LowerLowRank,
    LowRankSwap,
    Lyse,
    MergeBranches,
    MergeFactors,
    MergeUnits,
    NoteProbe,
    Proposal,
    PruneUnits,
    QuantizeLayers,
    QuantizePhage,
    RaiseKernel,
    RampUnits,
    Refit,
    ResizeKernel,
    Sedate,
    StageKernel,
    WidenUnits,
)

if TYPE_CHECKING:
    from esper.ir.model import Model

Rule = Callable[["Model", Proposal], Refusal | None]
_OF_AXES = (PruneUnits, KeepVocabulary, WidenUnits, RampUnits, MergeUnits)
# Proposals whose targets are nodes by name.
_OF_NODES = (
    FuseConvBN,
    Refit,
    ResizeKernel,
    StageKernel,
    AddBranch,
    LowRankSwap,
    MergeFactors,
    MergeBranches,
    QuantizeLayers,
    DequantizeLayers,
    LowerLinear,
    LowerGatedMlp,
    LowerLowRank,
    LowerAttentionProjections,
    RaiseKernel,
)

SETTLED = 20  # ticks for which a seed must have been committed before it is quantised


def known_target(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-target`: a target must be a living part."""
    if isinstance(proposal, _OF_AXES):
        return _missing("axis", proposal.axis, model.anatomy.axes, model.identities.retired)
    if isinstance(proposal, (DropRegion, QuantizePhage)):
        return _missing("region", proposal.region, model.anatomy.phages, model.identities.retired)
    if isinstance(proposal, Deepen):
        phages = model.anatomy.phages
        return _missing("part", proposal.after, {**phages, **model.nodes}, model.identities.retired)
    if isinstance(proposal, _OF_NODES):
        nodes = model.nodes
        for target in proposal.targets:
            refusal = _missing("node", target, nodes, set())
            if refusal is not None:
                return refusal
    return None


def _missing(
    what: str, name: str, living: Mapping[str, object], retired: set[str]
) -> Refusal | None:
    if name in living:
        return None
    if name in retired:
        return Refusal("retired-target", f"{what} {name} was removed earlier", name)
    near = get_close_matches(name, living, 1)
    remedy = f"did you mean {near[0]}?" if near else "list the parts with `esper inspect`"
    return Refusal("unknown-target", f"there is no {what} {name}", name, remedy)


def known_units(model: Model, proposal: Proposal) -> Refusal | None:
    """`unknown-unit`, `repeated-unit`: units must live, each named once."""
    units: tuple[int, ...]
    if isinstance(proposal, PruneUnits):
        units = proposal.units
    elif isinstance(proposal, WidenUnits):
        units = tuple(dict.fromkeys(proposal.sources))
    elif isinstance(proposal, MergeUnits):
        units = (*proposal.units, *dict.fromkeys(proposal.into))
    elif isinstance(proposal, KeepVocabulary):
        units = proposal.tokens
    else:
        return None
    axis = model.anatomy.axes[proposal.axis]
    gone = sorted(set(units) - set(axis.unit_ids))
    if gone:
        return Refusal(
            "unknown-unit", f"{axis.id} has no unit {gone[0]}", axis.id, "see unit_ids of the axis"
        )
    if len(set(units)) < len(units):
        return Refusal("repeated-unit", f"a unit of {axis.id} is named twice", axis.id)
    return None


def frozen_axis(model: Model, proposal: Proposal) -> Refusal | None:
    """`frozen-axis`: an op, a port or the user forbids another size of this axis."""
    if not isinstance(proposal, (PruneUnits, WidenUnits, MergeUnits)):
        return None
    axis = model.anatomy.axes[proposal.axis]
    if axis.frozen_reason is None:
        return None
    node = model.nodes.get(axis.frozen_node or "")
    source = node.meta.get("source", "") if node is not None else ""
    unknown = model.table.unknown.get(axis.frozen_node or "")
    remedy = "choose another axis"
    if unknown:
        remedy = f"register a rule for {unknown} with esper.register_axis_rule"
    elif axis.frozen_reason.startswith(pins.REASON):
        remedy = "take the pin back with Model.unpin"
    reason = f"{axis.id} is frozen: {axis.frozen_reason}"
    if axis.frozen_node:
        reason += f" at %{axis.frozen_node}"
    if source:
        reason += f" ({source})"
    return Refusal("frozen-axis", reason, axis.frozen_node, remedy)


def several_units(model: Model, proposal: Proposal) -> Refusal | None:
    """`single-unit`: the analysis leaves out axes of one unit, so nothing says where they live."""
    if not isinstance(proposal, (WidenUnits, MergeUnits)):
        return None
    axis = model.anatomy.axes[proposal.axis]
    if axis.size > 1:
        return None
    return Refusal(
        "single-unit",
        f"{axis.id} has a single unit, which the analysis does not tell from none",
        axis.id,
        "choose an axis of several units",
    )


def paired_units(model: Model, proposal: Proposal) -> Refusal | None:
    """`unpaired-unit`: each unit that is merged has one that takes over, as many as there are."""
    if not isinstance(proposal, MergeUnits) or len(proposal.units) == len(proposal.into):
        return None
    return Refusal(
        "unpaired-unit",
        f"{len(proposal.units)} units of {proposal.axis} are merged into {len(proposal.into)}",
        proposal.axis,
        "name the unit that takes over for each",
    )


def never_empty(model: Model, proposal: Proposal) -> Refusal | None:
    """`empty-axis`: at least one unit stays; removing a whole part is another proposal."""
    if not isinstance(proposal, PruneUnits):
        return None
    axis = model.anatomy.axes[proposal.axis]
    if len(proposal.units) < axis.size:
        return None
    return Refusal(
        "empty-axis",
        f"cutting all {axis.size} units would leave {axis.id} empty",
        axis.id,
        "keep at least one unit, or propose drop-region for the part",
    )


def enough_units(model: Model, proposal: Proposal) -> Refusal | None:
    """`too-few-units`: where k units are selected (top-k), k must stay."""
    if not isinstance(proposal, PruneUnits):
        return None
    axis = model.anatomy.axes[proposal.axis]
    left = axis.size - len(proposal.units)
    if left >= axis.least:
        return None
    return Refusal(
        "too-few-units",
        f"cutting {len(proposal.units)} units would leave {left} of {axis.id}, "
        f"of which {axis.least} are selected",
        axis.id,
        f"keep at least {axis.least} units",
    )


def bypassable_region(model: Model, proposal: Proposal) -> Refusal | None:
    """`not-bypassable`: input and output of a dropped region must agree."""
    if not isinstance(proposal, DropRegion):
        return None
    region = model.anatomy.phages[proposal.region]
    if region.bypassable:
        return None
    return Refusal(
        "not-bypassable",
        f"{region.id} cannot be bypassed: {region.reason}",
        region.id,
        "take the pin back with Model.unpin"
        if region.reason.startswith(pins.REASON)
        else "drop a region whose input and output agree in shape",
    )


def settled_phage(model: Model, proposal: Proposal) -> Refusal | None:
    """`unsettled-phage`: what still grows, or was committed a moment ago, is not frozen."""
    if not isinstance(proposal, QuantizePhage):
        return None
    path = f"{model.anatomy.phages[proposal.region].path}."
    tick = model.ecology.tick
    for name, life in model.ecology.slots().items():
        seed = f"{life.seed}."
        if not life.seed or not (path.startswith(seed) or seed.startswith(path)):
            continue
        if life.stage == "committed" and tick - life.since >= SETTLED:
            continue
        age = f"committed for {tick - life.since} of {SETTLED} ticks"
        state = age if life.stage == "committed" else life.stage
        return Refusal(
            "unsettled-phage",
            f"{proposal.region} holds the seed of {name}, which is {state}",
            proposal.region,
            "quantise once the seed has been committed for some time",
        )
    return None


def removable_part(model: Model, proposal: Proposal) -> Refusal | None:
    """What may not be cut or dropped is not sedated or lysed either, and no finding is noted of it.

    The codes are those of the rules above.
    """
    if not isinstance(proposal, (Sedate, Lyse, NoteProbe)):
        return None
    rules = (known_target, known_units) if isinstance(proposal, NoteProbe) else STRUCTURE
    refusals = (rule(model, proposal.removal) for rule in rules)
    return next((refusal for refusal in refusals if refusal is not None), None)


STRUCTURE: tuple[Rule, ...] = (
    known_target,
    known_units,
    frozen_axis,
    several_units,
    paired_units,
    never_empty,
    enough_units,
    bypassable_region,
    *order.RULES,
    *sparsity.RULES,
    settled_phage,
)
RULES: tuple[Rule, ...] = (*STRUCTURE, removable_part, *ecology.RULES)


def check(model: Model, proposal: Proposal) -> Refusal | None:
    """The first refusal, or None where the contract admits the proposal."""
    for rule in RULES:
        refusal = rule(model, proposal)
        if refusal is not None:
            return refusal
    return None
