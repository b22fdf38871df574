"""The prune pass: choose units by saliency and propose to cut them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from esper.passbase import Context, Pass, Proposals, Remark
from esper.propose import PruneUnits
from esper_passes import saliency
from esper_passes.alignment import best_size
from esper_passes.choice import chosen_axes, ruleless
from esper_passes.cost import unit_costs
from esper_passes.saliency import Scores

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model


@dataclass(frozen=True)
class Prune(Pass):
    """Cut the least salient units of axes out of all tensors that hold them."""

    name: ClassVar[str] = "prune"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "speed"

    axes: str = field(
        default="any",
        metadata={"doc": "any, a kind (heads, neurons, channels, ...), or a glob over axis IDs"},
    )
    ratio: float = field(default=0.3, metadata={"doc": "share to cut, 0 to 1"})
    saliency: Literal["magnitude", "activation", "taylor", "random"] = field(
        default="magnitude", metadata={"doc": "how units are ranked; the middle two need data"}
    )
    scope: Literal["local", "global"] = field(
        default="local",
        metadata={
            "doc": "local: the ratio of each axis; global: the ratio of all multiply-accumulates, "
            "lowest saliency per cost first"
        },
    )
    align: int | Literal["auto"] = field(
        default="auto",
        metadata={"doc": "kept sizes are multiples of this; auto measures where the cliffs are"},
    )
    min_keep: float = field(
        default=0.1, metadata={"doc": "share of an axis that always stays (global scope)"}
    )
    fold_constants: bool = field(
        default=True, metadata={"doc": "constants of cut units move into consumers' biases"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError("ratio must lie between 0 and 1")
        if not 0 <= self.min_keep <= 1:
            raise ValueError("min_keep must lie between 0 and 1")
        if self.align != "auto" and self.align < 1:
            raise ValueError("align must be at least 1")

    def propose(self, model: Model, context: Context) -> Proposals:
        chosen = self.choose(model)
        yield from ruleless(model)
        if not chosen:
            yield Remark(
                "missed",
                "no-axis",
                f"no cuttable axis matches {self.axes!r}",
                remedy="see `esper inspect` for axes and what freezes them",
            )
            return
        scores = self._scores(model, chosen, context)
        keep = self._keep(model, chosen, scores)
        for axis in chosen:
            size = best_size(model, axis, keep[axis.id]) if self.align == "auto" else None
            aligned = size.units if size is not None else _multiple(keep[axis.id], self.align, axis)
            if size is not None and size.figures:
                yield Remark("analysis", "alignment", size.reason, axis.id, figures=size.figures)
            count = axis.size - aligned
            if count <= 0:
                yield Remark(
                    "missed",
                    "nothing-to-cut",
                    f"{axis.id} keeps all {axis.size} units at ratio {self.ratio:g}",
                    axis.id,
                    "a larger ratio or a smaller alignment cuts it",
                )
                continue
            order = torch.argsort(scores[axis.id], stable=True)
            cut = sorted(order[:count].tolist())
            total = float(scores[axis.id].sum())
            yield PruneUnits(
                axis=axis.id,
                units=tuple(axis.unit_ids[i] for i in cut),
                fold_constants=self.fold_constants and axis.lossy_reason is None,
                proposer=self.name,
                evidence={
                    "saliency": self.saliency,
                    "share_of_saliency_cut": float(scores[axis.id][cut].sum()) / total
                    if total > 0
                    else 0.0,
                },
            )

    def choose(self, model: Model) -> list[Axis]:
        """Axes that the `axes` option names and that may be cut."""
        return chosen_axes(model, self.axes)

    def _scores(self, model: Model, axes: list[Axis], context: Context) -> Scores:
        if self.saliency == "magnitude":
            return saliency.magnitude(model, axes)
        if self.saliency == "random":
            return saliency.random(axes, context.seed)
        batches = context.batches(f"prune{{saliency={self.saliency}}}")
        if self.saliency == "activation":
            return saliency.activation(model, axes, batches)
        return saliency.taylor(model, axes, context, self.name)

    def _keep(self, model: Model, axes: list[Axis], scores: Scores) -> dict[str, int]:
        if self.scope == "local":
            return {a.id: max(a.least, a.size - int(a.size * self.ratio)) for a in axes}
        costs = unit_costs(model, axes)
        units: list[tuple[float, str]] = []
        for axis in axes:
            score = scores[axis.id]
            if self.saliency in ("magnitude", "random"):  # not comparable between axes as they are
                score = score / score.mean().clamp_min(1e-30)
            energy = score.square() / max(costs[axis.id], 1.0)
            units += [(float(value), axis.id) for value in energy]
        budget = self.ratio * sum(costs[a.id] * a.size for a in axes)
        keep = {axis.id: axis.size for axis in axes}
        floor = {axis.id: max(axis.least, round(axis.size * self.min_keep)) for axis in axes}
        for _, axis_id in sorted(units):
            if budget <= 0:
                break
            if keep[axis_id] > floor[axis_id]:
                keep[axis_id] -= 1
                budget -= costs[axis_id]
        return keep


def _multiple(keep: int, align: int | str, axis: Axis) -> int:
    assert isinstance(align, int)
    return min(axis.size, -(-keep // align) * align)
