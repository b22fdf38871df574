"""Small pieces of plans that several rewrites write down alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from esper.plan import Insert, Ref, Refusal
from esper_passes.affine import Affine, Unfit, affine
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    import torch

    from esper.ir.model import Model


class Inserter:
    """Inserts nodes before one node, with names that are free.

    Args:
        model: never changed.
        before: where the new nodes go; they belong to its module.
    """

    def __init__(self, model: Model, before: fx.Node, taken: Iterable[str] = ()) -> None:
        self._before = before
        self._taken = {*model.nodes, *taken}
        self.edits: list[Insert] = []

    def read(self, tensor: str, base: str) -> Ref:
        """A node that reads a tensor."""
        return self._add("get_attr", tensor, (), base)

    def call(self, target: Any, args: tuple[Any, ...], base: str) -> Ref:
        """A node that calls an op."""
        return self._add("call_function", target, args, base)

    def _add(self, op: str, target: Any, args: tuple[Any, ...], base: str) -> Ref:
        name = fresh(self._taken, base)
        self._taken.add(name)
        module = str(self._before.meta.get("module") or "")
        self.edits.append(Insert(name, op, target, args, self._before.name, module=module))
        return Ref(name)


def encoded(args: Iterable[Any], put: Mapping[int, Any] | None = None) -> tuple[Any, ...]:
    """Arguments of a node for a plan, some of them replaced by position."""
    put = put or {}
    return tuple(
        put[i] if i in put else Ref(a.name) if isinstance(a, fx.Node) else a
        for i, a in enumerate(args)
    )


def layer_of(model: Model, name: str, *, grouped: bool = False) -> Affine | Refusal:
    """The layer at a node, or why there is none that may be changed; see `affine`."""
    layer = affine(model, model.nodes[name], grouped=grouped)
    if isinstance(layer, Affine):
        return layer
    if isinstance(layer, Unfit):
        return Refusal(layer.code, layer.reason, name, layer.remedy)
    return Refusal("no-weight", f"%{name} has no weight of its own", name, "name a layer that has")


def weight_of(model: Model, layer: Affine) -> torch.Tensor:
    """The layer's weight tensor, detached."""
    weight = model.tensor(layer.weight)
    assert weight is not None
    return weight.detach()


def weight_read(node: fx.Node, layer: Affine) -> fx.Node:
    """The `get_attr` node that reads the layer's weight."""
    read = node.args[layer.operand + 1]
    assert isinstance(read, fx.Node)
    return read
