"""The `distil` pass and its rewrite: a changed model is drawn back towards the one it came from."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from esper.ir.binder import binder
from esper.ir.shapes import same_value
from esper.passbase import Batch, Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import Distil as Proposal
from esper.state import Op, Replace, StateTransform
from esper_passes.fitting import Fitted, fit, held_out
from esper_passes.refit import digest

if TYPE_CHECKING:
    from esper.ir.model import Model


class DistilRewrite(Rewrite):
    """Every tensor that was distilled takes its value; optimizer state of it starts anew."""

    type: ClassVar[str] = "distil"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses what did not help (`no-gain`) and tensors that are not, or no longer, at hand."""
        if not proposal.drift_after < proposal.drift_before:
            return Refusal(
                "no-gain",
                f"the held-out drift would go from {proposal.drift_before:.4g} to "
                f"{proposal.drift_after:.4g}",
                remedy="more steps, another learning rate or more data may help",
            )
        again = "run distil again on this model: only flight records keep its tensors"
        payload = model.payloads.get(proposal.digest)
        if payload is None:
            return Refusal("missing-payload", "no distilled tensors are at hand", remedy=again)
        if digest(payload) != proposal.digest:
            return Refusal("changed-payload", "the tensors were changed since", remedy=again)
        ops: dict[str, tuple[Op, ...]] = {}
        for name, value in payload.items():
            present = model.tensor(name)
            if present is None or present.shape != value.shape:
                what = "is gone" if present is None else f"is {tuple(present.shape)} now"
                return Refusal("stale-payload", f"{name} {what}", remedy=again)
            ops[name] = (Replace(value.to(present.dtype)),)
        return Plan(
            proposal=proposal,
            summary=f"{len(ops)} tensors distilled on calibration data",
            state=StateTransform(ops),
            tolerance="lossy",
            figures={
                "drift_before": proposal.drift_before,
                "drift_after": proposal.drift_after,
                "tensors": len(ops),
            },
        )


@dataclass(frozen=True)
class Distil(Pass):
    """Train a changed model briefly towards the original, on calibration data without labels.

    Loss: relative squared distance of all floating outputs, and of the values that leave regions
    which both models have. In evaluation mode, so dropout is off and statistics stay. The best
    state on held-out batches is proposed; where none is better than the present, it is refused.
    """

    name: ClassVar[str] = "distil"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "repair"

    steps: int = field(default=200, metadata={"doc": "steps of Adam, one batch each"})
    lr: float = field(default=1e-3, metadata={"doc": "learning rate, which falls to zero"})
    features: bool = field(
        default=True, metadata={"doc": "whether values inside count besides the outputs"}
    )
    only: str = field(default="*", metadata={"doc": "glob over names of tensors that may move"})
    held_out: float = field(
        default=0.25, metadata={"doc": "share of the batches, the last ones, that only judge"}
    )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held-out must lie between 0 and 1, not {self.held_out}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for the whole model. The teacher is `context.baseline`."""
        teacher = context.baseline
        if teacher is None:
            yield Remark(
                "missed",
                "no-baseline",
                "there is no model from before the change to learn from",
                remedy="run distil in one pipeline with the pass that changes the model",
            )
            return
        batches = context.batches(self.name)
        moving = _moving(model, self.only)
        if len(batches) < 2:
            yield Remark(
                "missed",
                "too-little-data",
                "at least two calibration batches are needed, one of them to judge",
                remedy="give more data",
            )
        elif not moving:
            yield Remark(
                "missed",
                "nothing-to-train",
                f"no trained tensor matches {self.only!r}",
                remedy="widen `only`",
            )
        else:
            found = self._distilled(teacher, model, batches, moving, context)
            name = digest(found.tensors)
            model.payloads[name] = found.tensors
            try:
                yield Proposal(
                    digest=name,
                    drift_before=found.before,
                    drift_after=found.after,
                    proposer=self.name,
                    evidence={"steps": found.step, "batches": len(batches)},
                )
            finally:
                model.payloads.pop(name, None)

    def _distilled(
        self,
        teacher: Model,
        model: Model,
        batches: Sequence[Batch],
        moving: Mapping[str, Tensor],
        context: Context,
    ) -> Fitted:
        taps = _common(teacher, model) if self.features else []
        master, pupil = _tapped(teacher, taps), _tapped(model, taps)
        outputs = len(pupil.outputs)
        with torch.no_grad():
            targets = [master.values(batch, {}) for batch in batches]
        return fit(
            lambda index, tensors: pupil.values(batches[index], tensors),
            targets,
            moving,
            judged=outputs,
            held=held_out(len(batches), self.held_out),
            steps=self.steps,
            lr=self.lr,
            progress=lambda done, total: context.progress(done, total, self.name),
        )


@dataclass(frozen=True)
class _Tapped:
    """A copy of a model, in evaluation mode, that returns floating outputs and values inside."""

    module: fx.GraphModule
    bind: Callable[..., list[Any]]
    outputs: list[fx.Node]

    def values(self, batch: Batch, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        args, kwargs = batch
        device = next((t.device for t in self.module.parameters()), torch.device("cpu"))
        leaves = [
            leaf.to(device) if isinstance(leaf, Tensor) else leaf
            for leaf in self.bind(*args, **kwargs)
        ]
        found: list[Tensor] = torch.func.functional_call(self.module, dict(tensors), tuple(leaves))
        return found


def _tapped(model: Model, taps: Sequence[str]) -> _Tapped:
    scratch = copy.deepcopy(model).eval()
    graph = scratch.graph
    nodes = scratch.nodes
    last = next(iter(graph.find_nodes(op="output")))
    outputs = [n for n in pytree.tree_leaves(last.args) if isinstance(n, fx.Node) and _floats(n)]
    with graph.inserting_before(last):
        graph.output([*outputs, *(nodes[name] for name in taps)])
    graph.erase_node(last)
    graph.set_codegen(fx.graph.CodeGen())
    return _Tapped(fx.GraphModule(scratch, graph), binder(model), outputs)


def _floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _moving(model: Model, only: str) -> dict[str, Tensor]:
    """Floating parameters that train, tied ones once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.is_floating_point()
        and fnmatch.fnmatchcase(name, only)
    }


def _common(teacher: Model, model: Model) -> list[str]:
    """Exits of regions that both models have, by the same name and in the same shape."""
    old, new = teacher.nodes, model.nodes
    theirs = {phage.exit for phage in teacher.anatomy.phages.values()}
    exits = dict.fromkeys(phage.exit for phage in model.anatomy.phages.values())
    return [
        name
        for name in exits
        if name in theirs
        and name in old
        and _floats(new[name])
        and same_value(old[name].meta["val"], new[name].meta["val"])
    ]
