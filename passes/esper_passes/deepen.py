"""The rewrite behind `Deepen`: new depth that computes the identity at first.

A residual region is copied behind itself with the last projection of each of its branches at
zero (as in the zero-initialised residual branches of Goyal et al., arXiv:1706.02677). Where there
is no residual, a layer with the identity as weight comes behind a layer or behind its rectifier,
which then follows once more: relu(relu(x)) is relu(x) (Net2DeeperNet, arXiv:1511.05641).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import fx

from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import Deepen
from esper_passes.copying import Copy, common_path, copied
from esper_passes.identity import behind

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.regions import Phage

aten = torch.ops.aten
_THROUGH = (
    aten.dropout.default,
    aten.view.default,
    aten.reshape.default,
    aten.clone.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.transpose.int,
    aten.permute.default,
    aten.contiguous.default,
)
_RECTIFIED = (aten.relu.default, aten.relu_.default)
_POOLED = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
# Positions of the tensors that make the result zero: weight and bias of layers and norms.
_LAST: dict[object, tuple[int, ...]] = {
    aten.linear.default: (1, 2),
    aten.addmm.default: (0, 2),
    aten.matmul.default: (1,),
    aten.mm.default: (1,),
    aten.batch_norm.default: (1, 2),
    aten.layer_norm.default: (2, 3),
    aten.group_norm.default: (2, 3),
    **{getattr(aten, f"conv{n}d").default: (1, 2) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 2) for n in (1, 2, 3)},
}


class DeepenRewrite(Rewrite):
    """Copies a residual region behind itself, or puts an identity behind a layer."""

    type = "deepen"

    def plan(self, model: Model, proposal: Deepen) -> Plan | Refusal:
        """Refuses (`not-residual`, `no-layer`) where no copy would be the identity."""
        phage = model.anatomy.phages.get(proposal.after)
        if phage is None:
            return behind(model, proposal)
        zeroed = _projections(model, phage)
        if isinstance(zeroed, Refusal):
            return zeroed
        leaving = phage.exit if phage.merge is None else phage.merge
        inner = (*phage.nodes, *([phage.merge] if phage.merge is not None else []))
        old_root = _root(model, phage)
        root = proposal.name or _free(model, old_root or "root")
        copy: Copy = copied(model, inner, phage.entry, leaving, old_root, root, zeroed)
        return Plan(
            proposal=proposal,
            summary=f"copy {phage.id} behind itself as {root}, the identity at first",
            edits=copy.edits,
            state=copy.state,
            tolerance="exact" if copy.exact else "reassociates",
            figures={"nodes_added": copy.nodes, "parameters_added": copy.parameters},
        )


def _free(model: Model, path: str) -> str:
    """`path_2` and so on: the first that no module, node or part has."""
    taken = {name for name, _ in model.named_modules()}
    taken |= {str(node.meta.get("module", "")) for node in model.graph.nodes}
    taken |= {name.removeprefix("phage:") for name in model.identities.retired}
    number = 2
    while f"{path}_{number}" in taken:
        number += 1
    return f"{path}_{number}"


def _root(model: Model, phage: Phage) -> str:
    """The path that all of a region lives under."""
    nodes = model.nodes
    return common_path([str(nodes[name].meta.get("module", "")) for name in phage.nodes])


def _projections(model: Model, phage: Phage) -> set[str] | Refusal:
    """`get_attr` nodes whose copies are zero, so that the copied region is the identity."""
    nodes = model.nodes
    if phage.merge is not None:
        last = _last(nodes[phage.exit])
        return last if last is not None else _no_way(phage, phage.exit)
    merges = {p.merge: p for p in model.anatomy.phages.values() if p.merge in phage.nodes}
    at, entry = nodes[phage.exit], nodes[phage.entry]
    if at.target in _RECTIFIED and _positive(entry):
        at = at.all_input_nodes[0]
    zeroed: set[str] = set()
    while at is not entry:
        branch = merges.get(at.name)
        if branch is None:
            return _no_way(phage, at.name)
        last = _last(nodes[branch.exit])
        if last is None:
            return _no_way(phage, branch.exit)
        zeroed |= last
        below = nodes[branch.entry]
        rectified = below.target in _RECTIFIED and below.name in phage.nodes
        at = below.all_input_nodes[0] if rectified and _positive(entry) else below
    return zeroed


def _positive(node: fx.Node) -> bool:
    """Whether a value is known to have no negative element."""
    while node.target in _POOLED:
        node = node.all_input_nodes[0]
    return node.target in _RECTIFIED


def _no_way(phage: Phage, node: str) -> Refusal:
    return Refusal(
        "not-residual",
        f"no copy of {phage.id} is the identity: %{node} is no sum with a branch that ends in a "
        "projection",
        node,
        "deepen behind a layer, or behind a residual region",
    )


def _last(node: fx.Node) -> set[str] | None:
    """Readers of the tensors that make a branch's result zero where they are."""
    while node.target in _THROUGH:
        node = node.all_input_nodes[0]
    if node.target is aten.mul.Tensor:  # a layer scale
        reads = {n.name for n in node.all_input_nodes if n.op == "get_attr"}
        return reads if len(reads) == 1 else None
    places = _LAST.get(node.target)
    if places is None:
        return None
    operands = [node.args[i] for i in places if i < len(node.args) and node.args[i] is not None]
    reads = {n.name for n in operands if isinstance(n, fx.Node) and n.op == "get_attr"}
    return reads if reads and len(reads) == len(operands) else None


@dataclass(frozen=True)
class DeepenPass(Pass):
    """Copy residual regions behind themselves as the identity: depth for training, not speed."""

    name: ClassVar[str] = "deepen"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"

    only: str = field(default="*", metadata={"doc": "glob over region IDs"})
    count: int = field(default=1, metadata={"doc": "how many regions are copied, the last first"})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")

    def propose(self, model: Model, context: Context) -> Proposals:
        """Whole residual blocks before branches, from the output backwards."""
        regions = [
            p
            for p in model.anatomy.phages.values()
            if p.bypassable and fnmatchcase(p.id, self.only)
        ]
        order = {node.name: i for i, node in enumerate(model.graph.nodes)}
        found = 0
        for region in sorted(regions, key=lambda p: (p.branch, -order[p.exit], -len(p.nodes))):
            if found == self.count:
                return
            if region.id not in model.anatomy.phages:
                continue
            record = yield Deepen(after=region.id, seed=context.seed, proposer=self.name)
            found += record is not None and record.kind == "passed"
        if found < self.count:
            yield Remark(
                "missed",
                "fewer-regions",
                f"{found} of {self.count} regions were copied: no other residual region matches "
                f"{self.only!r}",
                remedy="widen `only`, or deepen behind a layer with a Deepen proposal",
            )
