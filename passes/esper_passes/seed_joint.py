"""Where a seed meets its host: the few nodes that join a contribution c to the host's value h.

    incubating   h - nan_to_num(detach(c) - c)   h bit for bit, and c has the gradient of h + c
    blending     h + c * alpha                   or lerp(h, c, alpha) where the seed replaces h
    holding      the same, with alpha = 1
    committed    h + c                           or c alone

The first is a straight-through estimator (Bengio et al. 2013, arXiv:1308.3432).

The difference above is +0.0 where c is finite, and h - (+0.0) is h even for h = -0.0; where c is
not, `nan_to_num` makes it zero and stops the gradient, so a seed that breaks harms nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.plan import Insert, Ref, Refusal

if TYPE_CHECKING:
    from esper.ir.ecology import Algorithm, SlotLife
    from esper.ir.model import Model

aten = torch.ops.aten
ALPHA, GATE = "blend_alpha", "blend_gate"  # tensors beside the seed's own


@dataclass(frozen=True)
class Joint:
    """A joint as it stands in the graph.

    Attributes:
        host: node of the host's value.
        contribution: node of the seed's value.
        output: node that the host's readers read.
        nodes: the joint's own nodes in graph order, the output included.
    """

    host: fx.Node
    contribution: fx.Node
    output: fx.Node
    nodes: tuple[fx.Node, ...]


class Writer:
    """Collects the inserts of one plan, in order, under one module path."""

    def __init__(self, module: str, prefix: str, before: str, name: Callable[[str], str]) -> None:
        self.edits: list[Insert] = []
        self._module, self._prefix, self._before, self._name = module, prefix, before, name

    def call(self, target: Any, *args: Any, wish: str) -> Ref:
        """Insert a call; operands are Refs and literals."""
        name = self._name(f"{self._prefix}_{wish}")
        self.edits.append(
            Insert(name, "call_function", target, args, self._before, module=self._module)
        )
        return Ref(name)

    def read(self, tensor: str) -> Ref:
        """Insert a read of a tensor."""
        name = self._name(f"{self._prefix}_{tensor.rpartition('.')[2]}")
        self.edits.append(Insert(name, "get_attr", tensor, (), self._before, module=self._module))
        return Ref(name)


def contribution(
    writer: Writer, algorithm: Algorithm, entry: Ref, inner: Ref, gate: str, skip: bool
) -> Ref:
    """c from f(x).

    Args:
        writer: takes the nodes.
        algorithm: of the blend.
        entry: x.
        inner: f(x).
        gate: name of the gate's tensor, for `gated`.
        skip: for `replace`: whether the seed stands for x + f(x) rather than for f(x).
    """
    if algorithm == "multiply":
        return writer.call(aten.mul.Tensor, entry, inner, wish="scaled")
    if algorithm == "gated":
        share = writer.call(aten.sigmoid.default, writer.read(gate), wish="share")
        return writer.call(aten.mul.Tensor, inner, share, wish="gated")
    if algorithm == "replace" and skip:
        return writer.call(aten.add.Tensor, entry, inner, wish="stand_in")
    return inner


def incubate(writer: Writer, host: Ref, seed: Ref) -> Ref:
    """The host's value, with a gradient for the seed."""
    apart = writer.call(aten.detach.default, seed, wish="apart")
    nothing = writer.call(aten.sub.Tensor, apart, seed, wish="nothing")
    clean = writer.call(aten.nan_to_num.default, nothing, wish="clean")
    return writer.call(aten.sub.Tensor, host, clean, wish="incubated")


def mix(writer: Writer, algorithm: Algorithm, host: Ref, seed: Ref, alpha: str) -> Ref:
    """Host and seed, as far as alpha lets the seed in."""
    share = writer.read(alpha)
    if algorithm == "replace":
        return writer.call(aten.lerp.Tensor, host, seed, share, wish="blended")
    part = writer.call(aten.mul.Tensor, seed, share, wish="part")
    return writer.call(aten.add.Tensor, host, part, wish="blended")


def read_joint(model: Model, slot: str, life: SlotLife) -> Joint | Refusal:
    """The joint of the seed in a slot; `seed-changed` where other rewrites took it apart."""
    output = model.nodes.get(life.output)
    found = None if output is None else _incubating(output) or _blending(output)
    if output is not None and found is not None:
        host, seed, *nodes = found
        return Joint(host, seed, output, tuple(sorted([*nodes, output])))
    return Refusal(
        "seed-changed",
        f"the nodes that join the seed of {slot} to its host are not as they were planted",
        slot,
        "cull the seed",
    )


def _incubating(output: fx.Node) -> list[fx.Node] | None:
    if output.target is not aten.sub.Tensor:
        return None
    host, clean = output.args[:2]
    nothing = _operand(clean, aten.nan_to_num.default)
    apart = _operand(nothing, aten.sub.Tensor)
    seed = _operand(apart, aten.detach.default)
    if seed is None or not isinstance(host, fx.Node):
        return None
    assert isinstance(clean, fx.Node)
    assert nothing is not None
    assert apart is not None
    return [host, seed, apart, nothing, clean]


def _blending(output: fx.Node) -> list[fx.Node] | None:
    if output.target is aten.lerp.Tensor:
        host, seed, share = output.args
        nodes: list[Any] = []
    elif output.target is aten.add.Tensor:
        host, part = output.args[:2]
        if not isinstance(part, fx.Node) or part.target is not aten.mul.Tensor:
            return None
        seed, share = part.args[:2]
        nodes = [part]
    else:
        return None
    operands = [host, seed, share]
    if not all(isinstance(node, fx.Node) for node in operands) or share.op != "get_attr":  # type: ignore[union-attr]
        return None
    return [host, seed, share, *nodes]


def _operand(node: Any, target: Any) -> fx.Node | None:
    """First operand of a call of `target`; None for anything else."""
    if not isinstance(node, fx.Node) or node.target is not target:
        return None
    operand = node.args[0]
    return operand if isinstance(operand, fx.Node) else None
