"""The way back from the kernel of attention projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.codec import decode_target
from esper.ir.origin import Origin, origin_of
from esper.plan import Edit, Plan, Ref, Retarget
from esper.state import Op, Part, Select, StateTransform
from esper_passes.editing import Inserter
from esper_passes.liveness import fresh
from esper_passes.packed_weight import Unpacker
from esper_passes.raise_linear import LINEAR

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import RaiseKernel

aten = torch.ops.aten
_SWAP = {aten.transpose.int: (1, 2), aten.permute.default: ([0, 2, 1, 3],)}


def raise_attention(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which queries, keys and values have layers of their own again.

    Views state one size that is not fixed as -1, whatever they stated before.
    """
    args: list[Any] = list(node.args)
    x, weight, bias, heads, kv_heads, size = args
    counts = (heads, kv_heads, kv_heads)
    takers = {n: [u for u in sorted(node.users) if u.args[1] == n] for n in range(3)}
    first = min(user for users in takers.values() for user in users)
    unpacker, reader = Unpacker(model, first), Inserter(model, first)
    names = model.canonical_names()
    stored = [names[str(read.target)] for read in (weight, bias) if read is not None]
    calls = origin_of(node) or _plain(node, stored)
    state: dict[str, tuple[Op, ...]] = {}
    edits: list[Edit] = []
    sizes, start = _sizes(reader, x), 0
    for number, count in enumerate(counts):
        layer, view, swap = calls[3 * number : 3 * number + 3]
        stop = start + count * size
        if number == 0:
            rows = Ref(node.name)
            kept: tuple[Any, ...] = (Ref(weight.name), *([] if bias is None else [Ref(bias.name)]))
            edits.append(Retarget(node.name, decode_target(layer.op), (Ref(x.name), *kept)))
        else:
            own = [fresh({*names, *state}, name) for name in layer.tensors]
            for name, source in zip(own, stored, strict=True):
                state[name] = (Part(source, start, stop),)
            reads = [reader.read(name, f"{layer.name}_{i}") for i, name in enumerate(own)]
            rows = unpacker.call(layer, (Ref(x.name), *reads))
        split = unpacker.call(view, (rows, [*sizes, count, size]))
        target: Any = decode_target(swap.op)
        edits += [Retarget(u.name, target, (split, *_SWAP[target])) for u in takers[number]]
        start = stop
    state |= {name: (Select(0, tuple(range(heads * size))),) for name in stored}
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} is the first of three layers again",
        edits=(edits[0], *reader.edits, *unpacker.inserts, *edits[1:]),
        state=StateTransform(state),
        tolerance=proposal.tolerance,
    )


def _plain(node: fx.Node, stored: list[str]) -> tuple[Origin, ...]:
    """The plainest calls, where nothing is remembered."""
    calls: list[Origin] = []
    for part in ("q", "k", "v"):
        layer = node.name if part == "q" else f"{node.name}_{part}"
        tensors = tuple(f"{name}_{part}" for name in stored)
        calls += [
            Origin(layer, LINEAR, tensors=tensors),
            Origin(f"{layer}_heads", "aten.view.default"),
            Origin(f"{layer}_turned", "aten.transpose.int"),
        ]
    return tuple(calls)


def _sizes(insert: Inserter, x: fx.Node) -> list[Any]:
    """Batch and sequence: the first that is not fixed follows, another is read off the input."""
    sizes: list[Any] = list(x.meta["val"].shape[:2])
    symbols = [dim for dim in (0, 1) if not isinstance(sizes[dim], int)]
    for number, dim in enumerate(symbols):
        read = (aten.sym_size.int, (Ref(x.name), dim), f"{x.name}_size")
        sizes[dim] = insert.call(*read) if number else -1
    return sizes
