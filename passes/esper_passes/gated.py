"""Gated MLPs, act(x G^T) * (x U^T), as graphs hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.origin import Origin
from esper.plan import Refusal
from esper_passes.lowerable import Lowerable, lowerable, origins

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_ACTIVATIONS = {
    aten.silu.default: "silu",
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.gelu.default: "gelu",
}
#: What a kernel calls an activation -> the op, and its keyword arguments.
OPS: dict[str, tuple[str, dict[str, str]]] = {
    "silu": ("aten.silu.default", {}),
    "relu": ("aten.relu.default", {}),
    "sigmoid": ("aten.sigmoid.default", {}),
    "gelu": ("aten.gelu.default", {}),
    "gelu_tanh": ("aten.gelu.default", {"approximate": "tanh"}),
}


@dataclass(frozen=True)
class Gated:
    """A gated MLP up to its product.

    Attributes:
        node: of the product.
        activation: as `esper_kernels` calls it.
        act: node of the activation.
        gate, up: the layers.
    """

    node: fx.Node
    activation: str
    act: fx.Node
    gate: Lowerable
    up: Lowerable

    @property
    def gone(self) -> list[fx.Node]:
        """Nodes that a kernel takes in besides the product, users before what they use."""
        return [self.act, self.gate.node, self.up.node]

    def origin(self) -> tuple[Origin, ...]:
        """The calls that a kernel takes over, in graph order."""
        between = [x.between for x in (self.gate, self.up) if x.scale is not None]
        nodes = [self.node, *self.gone, *(node for node in between if node is not None)]
        return origins(*sorted(nodes))


def gated(model: Model, node: fx.Node) -> Gated | Refusal | None:
    """The gated MLP whose product a node is; a refusal where a layer cannot be lowered; else None.

    Layers have no biases, read the same value, and nothing else reads what is between.
    """
    if node.target is not aten.mul.Tensor or node.kwargs or len(node.args) != 2:
        return None
    for first, second in (node.args, node.args[::-1]):
        activation = _activation(first)
        if activation and _single(first) and _single(second) and _single(first.args[0]):  # type: ignore[union-attr]
            found = _gated(model, node, activation, first, second)
            if found is not None:
                return found
    return None


def _gated(
    model: Model, node: fx.Node, activation: str, act: Any, other: Any
) -> Gated | Refusal | None:
    gate, up = lowerable(model, act.args[0]), lowerable(model, other)
    if gate is None or up is None:
        return None
    for layer in (gate, up):
        if isinstance(layer, Refusal):
            return layer
    assert isinstance(gate, Lowerable)
    assert isinstance(up, Lowerable)
    alike = gate.x is up.x and gate.size == up.size and (gate.scale is None) == (up.scale is None)
    if not alike or gate.bias is not None or up.bias is not None:
        return None
    return Gated(node, activation, act, gate, up)


def _activation(node: Any) -> str:
    """Name of the activation that a node computes; empty for what is none."""
    if not isinstance(node, fx.Node) or len(node.args) != 1:
        return ""
    target: Any = node.target
    name = _ACTIVATIONS.get(target, "")
    return "gelu_tanh" if name and node.kwargs.get("approximate") == "tanh" else name


def _single(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1
