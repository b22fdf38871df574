"""Layers that compute the identity, behind layers that have no residual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.plan import Insert, Plan, Ref, Refusal, ReplaceUses
from esper.propose import Deepen
from esper.state import Create, StateTransform
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_RECTIFIED = (aten.relu.default, aten.relu_.default)
_LINEAR = (aten.linear.default, aten.addmm.default, aten.matmul.default, aten.mm.default)
_CONVOLUTIONS = {
    target: n
    for n in (1, 2, 3)
    for target in (getattr(aten, f"conv{n}d").default, getattr(aten, f"conv{n}d").padding)
}
_BETWEEN = (aten.batch_norm.default, aten.dropout.default)


def behind(model: Model, proposal: Deepen) -> Plan | Refusal:
    """A layer of the kind of the one at (or before) the node, with the identity as weight."""
    nodes = model.nodes
    node = nodes[proposal.after]
    rectified = node.target in _RECTIFIED
    layer = node.all_input_nodes[0] if rectified else node
    while layer.target in _BETWEEN:
        layer = layer.all_input_nodes[0]
    rank = _CONVOLUTIONS.get(layer.target)
    if rank is None and layer.target not in _LINEAR:
        return Refusal(
            "no-layer",
            f"%{node.name} ({node.target}) is neither a layer nor the rectifier behind one",
            node.name,
            "deepen behind a linear layer, a convolution, its ReLU, or a residual region",
        )
    weight: Any = layer.args[2 if layer.target is aten.addmm.default else 1]
    if weight.op != "get_attr" or not node.users:
        return Refusal("no-layer", f"%{layer.name} has no weight of its own", layer.name)
    kernel = [int(k) for k in weight.meta["val"].shape[2:]] if rank is not None else []
    if any(k % 2 == 0 for k in kernel):
        kernel = [1] * len(kernel)  # an even window has no middle
    width = int(node.meta["val"].shape[1 if rank is not None else -1])
    reference = model.tensor(str(weight.target))
    assert reference is not None
    path = proposal.name or _free(model, str(layer.meta.get("module", "")) or "root")
    start = _identity(width, kernel).to(reference)
    edits, name = _edits(model, node, path, rank, kernel, rectified)
    order = {n: i for i, n in enumerate(model.graph.nodes)}
    readers = sorted(node.users, key=order.__getitem__)
    edits.append(ReplaceUses(node.name, name, tuple(user.name for user in readers)))
    return Plan(
        proposal=proposal,
        summary=f"an identity layer of {width} behind %{node.name} as {path}",
        edits=tuple(edits),
        state=StateTransform(
            {
                f"{path}.weight": (Create(start, trainable=True),),
                f"{path}.bias": (Create(start.new_zeros(width), trainable=True),),
            }
        ),
        tolerance="exact",
        figures={"parameters_added": start.numel() + width},
    )


def _edits(
    model: Model, node: fx.Node, path: str, rank: int | None, kernel: list[int], rectified: bool
) -> tuple[list[Any], str]:
    taken = set(model.nodes)
    leaf = path.replace(".", "_")
    names = [fresh(taken, f"{leaf}_{part}") for part in ("weight", "bias", "layer", "relu")]
    order = {n: i for i, n in enumerate(model.graph.nodes)}
    before = min(node.users, key=order.__getitem__).name
    edits: list[Any] = [
        Insert(names[0], "get_attr", f"{path}.weight", (), before, module=path),
        Insert(names[1], "get_attr", f"{path}.bias", (), before, module=path),
    ]
    reads = (Ref(node.name), Ref(names[0]), Ref(names[1]))
    if rank is None:
        target: Any = aten.linear.default
        args: tuple[Any, ...] = reads
    else:
        target = getattr(aten, f"conv{rank}d").default
        args = (*reads, [1] * rank, [k // 2 for k in kernel])
    edits.append(Insert(names[2], "call_function", target, args, before, module=path))
    if not rectified:
        return edits, names[2]
    edits.append(
        Insert(names[3], "call_function", aten.relu.default, (Ref(names[2]),), before, module=path)
    )
    return edits, names[3]


def _identity(width: int, kernel: list[int]) -> Tensor:
    """The weight that gives each of `width` channels back: ones in the middle of the window."""
    weight = torch.zeros(width, width, *kernel)
    middle = weight
    for size in kernel:
        middle = middle.select(2, size // 2)
    middle.fill_diagonal_(1.0)
    return weight


def _free(model: Model, path: str) -> str:
    taken = {name for name, _ in model.named_modules()}
    number = 2
    while f"{path}_{number}" in taken:
        number += 1
    return f"{path}_{number}"
