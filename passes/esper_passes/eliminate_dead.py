"""Removing what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import EliminateDead as Proposal
from esper.state import StateTransform
from esper_passes.liveness import counters, dead_nodes, drops, erase, has_effects

if TYPE_CHECKING:
    from torch import fx

    from esper.ir.model import Model


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove nodes whose results reach no output, and tensors nobody reads."""

    name: ClassVar[str] = "eliminate-dead"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for everything dead, or a remark that there is nothing."""
        dead = dead_nodes(model)
        tensors = _unread(model, set(dead))
        if not dead and not tensors:
            yield Remark(
                "analysis", "nothing-dead", "every node reaches an output and every tensor is read"
            )
            return
        yield Proposal(
            nodes=tuple(node.name for node in dead),
            tensors=tuple(tensors),
            proposer=self.name,
            evidence={"nodes": len(dead), "tensors": len(tensors)},
        )


class EliminateDeadRewrite(Rewrite):
    """Erases the named nodes and drops the named tensors, after checking that they are dead."""

    type: ClassVar[str] = "eliminate-dead"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses a node that is used (`live-node`) and a tensor that is read (`live-tensor`)."""
        nodes = model.nodes
        names = model.canonical_names()
        unknown = [n for n in proposal.nodes if n not in nodes]
        unknown += [t for t in proposal.tensors if t not in names]
        if unknown:
            return Refusal(
                "unknown-target",
                f"there is no {unknown[0]} in the model",
                unknown[0],
                "run eliminate-dead again on the present model",
            )
        gone = {nodes[name] for name in proposal.nodes}
        for name in proposal.nodes:
            refusal = _alive(nodes[name], gone)
            if refusal is not None:
                return refusal
        dropped = sorted({names[tensor] for tensor in proposal.tensors})
        readers = {
            names[str(node.target)]: node
            for node in model.graph.find_nodes(op="get_attr")
            if node not in gone and str(node.target) in names
        }
        counting = counters(model, gone)
        for name in dropped:
            if name in readers or name in counting:
                node = readers.get(name)
                return Refusal(
                    "live-tensor",
                    f"{name} is still read" + (f" by %{node.name}" if node else " in training"),
                    name if node is None else node.name,
                    "name its readers too, if they are dead",
                )
        sizes = {name: tensor.numel() for name, tensor in model.all_tensors()}
        return Plan(
            proposal=proposal,
            summary=f"remove {len(gone)} dead nodes and {len(dropped)} unread tensors",
            edits=tuple(erase(gone)),
            state=StateTransform(drops(dropped)),
            figures={
                "nodes": len(gone),
                "tensors": len(dropped),
                "elements_removed": sum(sizes[name] for name in dropped),
            },
        )


def _alive(node: fx.Node, gone: set[fx.Node]) -> Refusal | None:
    if has_effects(node):
        what = "is a port" if node.op in ("placeholder", "output") else "has effects"
        return Refusal("live-node", f"%{node.name} {what}", node.name, "leave it out")
    for user in node.users:
        if user not in gone:
            return Refusal(
                "live-node",
                f"%{node.name} is used by %{user.name}",
                node.name,
                "name its users too, if they are dead",
            )
    return None


def _unread(model: Model, gone: set[fx.Node]) -> list[str]:
    """Canonical names of tensors that no node outside `gone` reads, living counters aside."""
    names = model.canonical_names()
    kept = {
        names[str(node.target)]
        for node in model.graph.find_nodes(op="get_attr")
        if node not in gone and str(node.target) in names
    }
    return sorted(set(names.values()) - kept - counters(model, gone))
