"""Computing once what is the same in every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import fx

from esper.ir.ancestors import ancestors
from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Edit, Insert, Plan, Refusal, ReplaceUses
from esper.propose import FoldConstants as Proposal
from esper.state import Create, Op, StateTransform
from esper_passes.liveness import drops, dying, erase, fresh, mutates, unread, written_later

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_UNINITIALISED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes that depend on no input and no trainable parameter now, and store the result.

    Attributes:
        max_bytes: larger results stay computed, since reading them may cost more than making them.
    """

    name: ClassVar[str] = "fold-constants"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"
    max_bytes: int = field(
        default=1 << 24, metadata={"doc": "larger results stay computed at run time"}
    )

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for all results that computed nodes or effects consume."""
        constant = constants(model)
        frontier = [
            node
            for node in model.graph.nodes
            if node in constant and _foldable(node) and self._small(node)
        ]
        chosen = set(frontier)
        # Where all users are folded themselves, the value needs no storage.
        nodes = [node for node in frontier if not all(user in chosen for user in node.users)]
        if not nodes:
            yield Remark(
                "analysis", "nothing-constant", "no node computes a constant worth storing"
            )
            return
        yield Proposal(
            nodes=tuple(node.name for node in nodes),
            proposer=self.name,
            evidence={"nodes": len(nodes), "bytes": sum(map(_bytes, nodes))},
        )

    def _small(self, node: fx.Node) -> bool:
        return _bytes(node) <= self.max_bytes


class FoldConstantsRewrite(Rewrite):
    """Each named node becomes a buffer under `constants.`; what only it used goes."""

    type: ClassVar[str] = "fold-constants"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses nodes that are not constant (`not-constant`) or cannot be stored (`no-value`)."""
        nodes = model.nodes
        constant = constants(model)
        chosen: list[fx.Node] = []
        for name in proposal.nodes:
            node = nodes.get(name)
            if node is None:
                return Refusal("unknown-target", f"there is no node {name}", name, "trace again")
            if node not in constant:
                return Refusal(
                    "not-constant",
                    f"%{name} {_why(node, constant)}",
                    name,
                    "fold a node behind which there are only buffers and literals",
                )
            if not _foldable(node):
                return Refusal(
                    "no-value",
                    f"%{name} is no fresh tensor of fixed shape that nobody writes into or returns",
                    name,
                    "fold one of its users",
                )
            chosen.append(node)
        values = _compute(model, chosen)
        ops: dict[str, tuple[Op, ...]] = {}
        edits: list[Edit] = []
        tensors = {name for name, _ in model.all_tensors()}
        for node in chosen:
            buffer = fresh(tensors, f"constants.{node.name}")
            read = fresh(nodes, f"{node.name}_constant")
            tensors.add(buffer)
            ops[buffer] = (Create(values[node], trainable=False),)
            module = str(node.meta.get("module") or "")
            edits.append(Insert(read, "get_attr", buffer, (), node.name, module=module))
            edits.append(ReplaceUses(node.name, read))
        gone = dying(model, chosen)
        return Plan(
            proposal=proposal,
            summary=f"fold {len(gone)} constant nodes into {len(chosen)} buffers",
            edits=(*edits, *erase(gone)),
            state=StateTransform({**ops, **drops(unread(model, gone))}),
            figures={
                "nodes_removed": len(gone) - len(chosen),
                "bytes_stored": sum(v.numel() * v.element_size() for v in values.values()),
            },
        )


def constants(model: Model) -> set[fx.Node]:
    """Nodes that compute the same in every call, in both modes: buffers, literals, and ops on them.

    Buffers that some node writes to, and statistics of batch norms, are no constants.
    """
    trainable = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    state = _written(model)
    names = model.canonical_names()
    found: set[fx.Node] = set()
    for node in model.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            if name in names and name not in trainable and names[name] not in state:
                found.add(node)
        elif node.op == "call_function" and _pure(node) and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _written(model: Model) -> set[str]:
    names = model.canonical_names()
    written: set[str] = set()
    for node in model.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names and written_later(node):
            written.add(names[str(node.target)])
        if node.target is aten.batch_norm.default:
            # Statistics may be views of buffers: whatever they are made of is written.
            for statistics in node.args[3:5]:
                written.update(names[n] for n in _tensors_below(statistics) if n in names)
        if node.meta.get("counter") in names:
            written.add(names[node.meta["counter"]])
    return written


def _tensors_below(value: Any) -> set[str]:
    """Names of the tensors that a node is, or is computed from."""
    found: set[str] = set()
    seen: set[fx.Node] = set()
    stack = [value] if isinstance(value, fx.Node) else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack.extend(node.all_input_nodes)
        if node.op == "get_attr":
            found.add(str(node.target))
    return found


def _pure(node: fx.Node) -> bool:
    if node.meta.get("modes") or mutates(node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return not node.is_impure()
    name = node.target._schema.name.split("::")[1]
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return name not in _UNINITIALISED and not random and not node.is_impure()


def _foldable(node: fx.Node) -> bool:
    """Whether a constant can be stored: a plain tensor of fixed shape, not returned or written."""
    value = node.meta.get("val")
    return (
        node.op == "call_function"
        and isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and all(isinstance(size, int) for size in list[Any](value.shape))
        and not written_later(node)
        and not any(user.op == "output" for user in node.users)
        and bool(node.users)
    )


def _bytes(node: fx.Node) -> int:
    value: torch.Tensor = node.meta["val"]
    return value.numel() * value.element_size()


def _why(node: fx.Node, constant: set[fx.Node]) -> str:
    for source in node.all_input_nodes:
        if source not in constant:
            return f"depends on %{source.name}"
    return "is random, changes state, or differs between training and evaluation"


def _compute(model: Model, nodes: list[fx.Node]) -> dict[fx.Node, torch.Tensor]:
    """Values of constant nodes, contiguous copies."""
    known: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in sorted(ancestors(nodes)):
            if node.op == "get_attr":
                known[node] = model.tensor(str(node.target))
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return {
        node: known[node].detach().clone(memory_format=torch.contiguous_format) for node in nodes
    }
