"""Dropping whole regions: what leaves a residual network is often not missed.

The measure of what a region does is how far the outputs move without it, on calibration data
(compare layer drop at inference, Fan et al. 2020, and the block influence of Men et al. 2024).
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from esper.errors import UsageError
from esper.manager import PassManager
from esper.passbase import Batch, Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal, ReplaceUses
from esper.propose import DropRegion as Proposal
from esper.state import StateTransform
from esper_passes.liveness import drops, dying, erase, mutates, unread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esper.ir.model import Model
    from esper.ir.regions import Phage


class DropRegionRewrite(Rewrite):
    """The value that leaves a region becomes the one that enters; a branch's sum goes with it."""

    type: ClassVar[str] = "drop-region"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses what is not bypassable, and regions that write into values (`mutation`)."""
        phage = model.anatomy.phages[proposal.region]
        if not phage.bypassable:
            return Refusal(
                "not-bypassable",
                f"{phage.id} cannot be bypassed: {phage.reason}",
                phage.id,
                "drop a region whose input and output agree in shape",
            )
        nodes = model.nodes
        for name in phage.nodes:
            if mutates(nodes[name]):
                return Refusal(
                    "mutation",
                    f"%{name} in {phage.id} writes into a value that may be seen outside",
                    name,
                    "write the operation out of place",
                )
        entry = nodes[phage.entry]
        leaving = nodes[phage.exit if phage.merge is None else phage.merge]
        gone = dying(model, [leaving], keep=entry)
        held = set(phage.nodes) - {node.name for node in gone}
        if held:
            return Refusal(
                "still-used",
                f"%{min(held)} in {phage.id} is needed outside",
                min(held),
                "drop a region that does not hold it",
            )
        lost = unread(model, gone)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        return Plan(
            proposal=proposal,
            summary=f"drop {phage.id} ({len(gone)} nodes)",
            edits=(ReplaceUses(leaving.name, entry.name), *erase(gone)),
            state=StateTransform(drops(lost)),
            tolerance="lossy",
            figures={
                "nodes_removed": len(gone),
                "parameters_removed": sum(sizes.get(name, 0) for name in lost),
            },
        )


@dataclass(frozen=True)
class DropRegions(Pass):
    """Drop the regions whose absence moves the outputs least, measured again after each drop.

    Attributes:
        count: how many to drop; one if neither this nor `ratio` is given.
        ratio: drop while at most this share of the model's parameters goes.
        only: glob over region IDs.
    """

    name: ClassVar[str] = "drop-regions"
    count: int | None = field(default=None, metadata={"doc": "how many regions go, at most"})
    ratio: float | None = field(
        default=None, metadata={"doc": "share of the parameters that goes, at most"}
    )
    only: str = field(default="*", metadata={"doc": "glob over region IDs"})

    def __post_init__(self) -> None:
        """Check the options."""
        if self.count is not None and self.ratio is not None:
            raise UsageError("drop-regions takes count or ratio, not both")
        if self.count is not None and self.count < 1:
            raise UsageError(f"drop-regions: count must be at least 1, not {self.count}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise UsageError(f"drop-regions: ratio must lie between 0 and 1, not {self.ratio}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """Score, propose the best, score what is left again. Needs calibration data."""
        batches = context.batches(self.name)
        wanted = math.inf if self.ratio is not None else (self.count or 1)
        budget = math.inf if self.ratio is None else self.ratio * _elements(model)
        spent = dropped = 0
        refused: set[str] = set()
        while dropped < wanted:
            best = self._best(model, batches, budget - spent, refused, context)
            if best is None:
                break
            phage, drift = best
            before = _elements(model)
            record = yield Proposal(
                region=phage.id,
                proposer=self.name,
                evidence={"drift": drift, "nodes": len(phage.nodes), "elements": phage.parameters},
            )
            if record is None or record.kind != "passed":
                refused.add(phage.id)
            else:
                dropped += 1
                spent += before - _elements(model)
        if not dropped and not refused:
            yield Remark(
                "missed",
                "nothing-bypassable",
                f"no region that matches {self.only!r} can be bypassed within the limits",
                remedy="list the regions with `esper inspect`, or widen `only` or `ratio`",
            )
        elif self.count is not None and dropped < self.count:
            yield Remark(
                "missed",
                "fewer-regions",
                f"{dropped} of {self.count} regions were dropped: no other candidate is left",
                remedy="widen `only`",
            )

    def _best(
        self,
        model: Model,
        batches: Sequence[Batch],
        budget: float,
        refused: set[str],
        context: Context,
    ) -> tuple[Phage, float] | None:
        phages = [
            phage
            for phage in model.anatomy.phages.values()
            if phage.bypassable
            and phage.id not in refused
            and phage.parameters <= budget
            and fnmatch.fnmatchcase(phage.id, self.only)
        ]
        scores = dict(drifts(model, [p.id for p in phages], batches, context))
        # A smaller change goes first where the outputs move equally.
        phages = [phage for phage in phages if phage.id in scores]
        best = min(phages, key=lambda p: (scores[p.id], len(p.nodes), p.id), default=None)
        return None if best is None else (best, scores[best.id])


def drifts(
    model: Model, regions: Sequence[str], batches: Sequence[Batch], context: Context
) -> Iterator[tuple[str, float]]:
    """Relative output error without each region: ||y' - y|| / ||y|| over all batches.

    Measured in evaluation mode on one copy, on which each drop is applied and rolled back.
    Regions whose drop is refused or whose outputs are not finite yield nothing.
    """
    if not regions:
        return
    trial = copy.deepcopy(model).eval()
    manager = PassManager(trial, verify="none")
    expected = [_outputs(trial, batch) for batch in batches]
    for done, region in enumerate(regions):
        context.progress(done, len(regions), "scoring regions")
        with manager.transaction() as transaction:
            record = manager.apply(Proposal(region=region, proposer="drop-regions"))
            error = size = 0.0
            if record.kind == "passed":
                for batch, wanted in zip(batches, expected, strict=True):
                    for new, old in zip(_outputs(trial, batch), wanted, strict=True):
                        error += float((new - old).square().sum())
                        size += float(old.square().sum())
            transaction.roll_back()
        drift = math.sqrt(error / size) if size else error
        if record.kind == "passed" and math.isfinite(drift):
            yield region, drift


def _outputs(model: Model, batch: Batch) -> list[torch.Tensor]:
    args, kwargs = batch
    with torch.no_grad():
        leaves: list[Any] = pytree.tree_leaves(model(*args, **kwargs))
    return [t.double() for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]


def _elements(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
