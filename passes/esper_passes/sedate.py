"""The rewrites behind `Sedate` and `Wake`: reversible gates.

Units are masked wherever they are consumed, spelled as in the reference of a cut
(`esper.ir.reference`): `torch.where`, so that not even a NaN gets through, and statistics over
what stays. A region hands on what enters it. All nodes and tensors stay, and so does what is known
of axes and regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from esper.ir.axes import Use
from esper.ir.modes import get_path
from esper.ir.reference import NEUTRAL, combined, masks_by_node, norm_over_kept, share_kept
from esper.passbase import Rewrite
from esper.plan import Edit, Erase, Insert, Plan, Ref, Refusal, ReplaceUses, SetArg, SetLife
from esper.propose import DropRegion, Sedate, Wake
from esper.state import Create, Drop, Op, StateTransform
from esper_passes.drop_regions import DropRegionRewrite
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


class SedateRewrite(Rewrite):
    """Gates in front of what consumes the target, one mask each."""

    type: ClassVar[str] = "sedate"

    def plan(self, model: Model, proposal: Sedate) -> Plan | Refusal:
        """Refuses regions that could not be dropped: sedation stands for a removal."""
        gates = _Gates(model)
        if proposal.units:
            removed = {proposal.target: proposal.units}
            for name, masks in masks_by_node(model, removed).items():
                gates.consumer(model.nodes[name], masks)
            what = f"{len(proposal.units)} units of {proposal.target}"
        else:
            drop = DropRegionRewrite().plan(model, DropRegion(region=proposal.target))
            if isinstance(drop, Refusal):
                return drop
            gates.region(proposal.target)
            what = proposal.target
        page = model.ecology.immunity(proposal.target)
        asleep = page.model_copy(update={"gates": tuple(gates.made)})
        return Plan(
            proposal=proposal,
            summary=f"sedate {what} with {_gates(len(gates.made))}",
            edits=tuple(gates.edits),
            state=StateTransform(gates.masks),
            lives=(SetLife(proposal.target, asleep),),
            tolerance="lossy",
            keeps_anatomy=True,
            figures={"gates": len(gates.made)},
        )


class WakeRewrite(Rewrite):
    """The gates go, and what they stood for is used again."""

    type: ClassVar[str] = "wake"

    def plan(self, model: Model, proposal: Wake) -> Plan | Refusal:
        nodes = model.nodes
        page = model.ecology.immunity(proposal.target)
        edits: list[Edit] = []
        masks: dict[str, tuple[Op, ...]] = {}
        for gate, original in reversed(page.gates):
            edits += [ReplaceUses(gate, original), Erase(gate)]
            read = nodes[gate].args[0]
            if isinstance(read, fx.Node) and read.op == "get_attr":
                edits.append(Erase(read.name))
                masks[str(read.target)] = (Drop(),)
        awake = page.model_copy(update={"gates": ()})
        return Plan(
            proposal=proposal,
            summary=f"wake {proposal.target}, held by {_gates(len(page.gates))}",
            edits=tuple(edits),
            state=StateTransform(masks),
            lives=(SetLife(proposal.target, awake if awake != type(awake)() else None),),
            keeps_anatomy=True,
            figures={"gates": len(page.gates)},
        )


def _gates(count: int) -> str:
    return "one gate" if count == 1 else f"{count} gates"


class _Gates:
    """Collects the edits of one sedation.

    Attributes:
        edits: in order.
        masks: buffers that they read.
        made: name of each gate and of the node that it stands for.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._nodes = set(model.nodes)
        self._tensors = {name for name, _ in model.all_tensors()}
        self._after = _following(model)
        self._device = next((t.device for _, t in model.all_tensors()), torch.device("cpu"))
        self.edits: list[Edit] = []
        self.masks: dict[str, tuple[Op, ...]] = {}
        self.made: list[tuple[str, str]] = []
        self._replaced: dict[str, str] = {}  # node -> gate that stands for it

    def region(self, region: str) -> None:
        """What leaves the region becomes what enters it."""
        phage = self._model.anatomy.phages[region]
        leaving = self._model.nodes[phage.exit if phage.merge is None else phage.merge]
        # Where a sum leaves, it lies in the module that adds; else in the module around the region.
        around = phage.path.rpartition(".")[0]
        module = around if phage.merge is None else str(leaving.meta.get("module") or "")
        after = self._after[leaving.name]
        mask = self._mask(torch.zeros((), dtype=torch.bool), after, module)
        args = (mask, Ref(leaving.name), Ref(phage.entry))
        gate = self._insert(aten.where.self, args, after, module)
        self._stands_for(gate, leaving.name)

    def consumer(self, node: fx.Node, masks: Mapping[Use, torch.Tensor]) -> None:
        """One node that consumes units."""
        module = str(node.meta.get("module") or "")
        norm = norm_over_kept(node, masks)
        if norm is not None:
            operand = node.args[0]
            assert isinstance(operand, fx.Node)
            whole = combined(operand.meta["val"].ndim, masks)
            after = self._after[node.name]
            mask = self._mask(whole, after, module)
            args = (mask, *self._refs(node.args))
            gate = self._insert(norm, args, after, module, self._refs(dict(node.kwargs)))
            self._stands_for(gate, node.name)
            return
        operands: dict[tuple[int | str, ...], Ref] = {}
        for use, kept in masks.items():
            operand = get_path(node, use.path)
            name = self._replaced.get(operand.name, operand.name)
            present = operands.get(use.path, Ref(name))
            shape = [-1] + [1] * (operand.meta["val"].ndim - use.dim - 1)
            mask = self._mask(kept.reshape(shape), node.name, module)
            value = NEUTRAL[use.kind]
            gate = self._insert(aten.where.ScalarOther, (mask, present, value), node.name, module)
            self.edits.append(SetArg(node.name, use.path, gate))
            self.made.append((gate.name, present.name))
            operands[use.path] = gate
        if next(iter(masks)).kind == "mean":
            after = self._after[node.name]
            args = (Ref(node.name), share_kept(masks))
            self._stands_for(self._insert(aten.mul.Tensor, args, after, module), node.name)

    def _stands_for(self, gate: Ref, original: str) -> None:
        self.edits.append(ReplaceUses(original, gate.name))
        self.made.append((gate.name, original))
        self._replaced[original] = gate.name

    def _mask(self, kept: torch.Tensor, before: str, module: str) -> Ref:
        tensor = fresh(self._tensors, "sedation")
        self._tensors.add(tensor)
        self.masks[tensor] = (Create(kept.to(self._device), trainable=False),)
        name = self._name("sedation")
        self.edits.append(Insert(name, "get_attr", tensor, (), before, module=module))
        return Ref(name)

    def _insert(
        self,
        target: Any,
        args: tuple[Any, ...],
        before: str,
        module: str,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Ref:
        name = self._name("gate")
        self.edits.append(Insert(name, "call_function", target, args, before, kwargs or {}, module))
        return Ref(name)

    def _refs(self, value: Any) -> Any:
        """Arguments with nodes by name, gates in the place of what they stand for."""

        def named(leaf: Any) -> Any:
            if not isinstance(leaf, fx.Node):
                return leaf
            return Ref(self._replaced.get(leaf.name, leaf.name))

        return fx.node.map_aggregate(value, named)

    def _name(self, base: str) -> str:
        name = fresh(self._nodes, base)
        self._nodes.add(name)
        return name


def _following(model: Model) -> dict[str, str]:
    """Node name -> name of the node after it."""
    names = list(model.nodes)
    return dict(itertools.pairwise(names))
