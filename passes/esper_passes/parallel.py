"""Parallel branches of one sum, read off the graph: as kernels, as pairs of layers, as chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.plan import Refusal
from esper_passes.affine import Affine, affine
from esper_passes.editing import weight_of

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


@dataclass(frozen=True)
class Chain:
    """Nodes from a value to the end of a branch, each of which only the next one reads.

    Attributes:
        source: the value that enters.
        nodes: calls in order; the last one is the end of the branch.
    """

    source: fx.Node
    nodes: tuple[fx.Node, ...]

    def reads(self) -> list[fx.Node]:
        """The tensors that its nodes read, in order."""
        return [n for node in self.nodes for n in node.all_input_nodes if n.op == "get_attr"]

    def run(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Any:
        """Its value for another input, with other tensors (by target of the reading node)."""
        values: dict[fx.Node, Any] = {self.source: x}
        values |= {read: tensors[str(read.target)] for read in self.reads()}
        for node in self.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return values[self.nodes[-1]]


def sum_of(a: fx.Node, b: fx.Node) -> fx.Node | Refusal:
    """The node that adds two values, and is the only one to do so."""
    sums = [
        user
        for user in a.users
        if user.target is aten.add.Tensor and not user.kwargs and set(user.args) == {a, b}
    ]
    if len(sums) == 1 and a is not b:
        return sums[0]
    return Refusal(
        "no-sum",
        f"%{a.name} and %{b.name} are not the two operands of one sum",
        b.name,
        "name the two values that one node adds",
    )


def chain(end: fx.Node, source: fx.Node | None = None) -> Chain | None:
    """The longest chain that ends here, or the one from `source`; None where there is none."""
    nodes: list[fx.Node] = []
    node = end
    while node is not source:
        inner = [n for n in node.all_input_nodes if n.op != "get_attr"]
        single = node is end or len(node.users) == 1
        if node.op != "call_function" or len(inner) != 1 or not single:
            break
        nodes.append(node)
        node = inner[0]
    if not nodes or (source is not None and node is not source):
        return None
    return Chain(node, tuple(reversed(nodes)))


def pair_of_chains(a: fx.Node, b: fx.Node) -> tuple[Chain, Chain] | None:
    """Chains from the nearest value that both ends hang on."""
    long = chain(a)
    if long is None:
        return None
    for candidate in reversed([long.source, *long.nodes[:-1]]):
        one, two = chain(a, candidate), chain(b, candidate)
        if one is not None and two is not None:
            return one, two
    return None


def alike(model: Model, one: Chain, two: Chain) -> str:
    """Why two chains differ in structure; empty where they take the same steps."""
    if len(one.nodes) != len(two.nodes):
        return f"one takes {len(one.nodes)} steps, the other {len(two.nodes)}"
    for a, b in zip(one.nodes, two.nodes, strict=True):
        if a.target is not b.target or _form(model, a) != _form(model, b):
            return f"%{a.name} and %{b.name} differ"
        if a.meta.get("modes") and any(now for now in _switches(a)):
            return f"%{a.name} behaves otherwise in training"
    return ""


def _form(model: Model, node: fx.Node) -> Any:
    """Arguments of a node with tensors by shape and dtype, and the value in the chain left out."""

    def form(operand: fx.Node) -> Any:
        if operand.op != "get_attr":
            return "value"
        tensor = model.tensor(str(operand.target))
        return None if tensor is None else (tuple(tensor.shape), tensor.dtype)

    return fx.map_arg((node.args, dict(node.kwargs)), form)


def _switches(node: fx.Node) -> list[bool]:
    """For each argument that training switches, whether it is set for training."""
    found: list[bool] = []
    for path, (evaluating, _) in node.meta.get("modes", {}).items():
        value: Any = node.kwargs if isinstance(path[0], str) else node.args
        for step in path:
            value = value[step]
        found.append(value != evaluating)
    return found


def elementwise(node: fx.Node) -> bool:
    """Whether a node maps each number of one value by itself."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and not target._schema.is_mutable
        and len(node.all_input_nodes) == 1
        and node.all_input_nodes[0].op != "get_attr"
    )


def two_layers(model: Model, branch: Chain) -> tuple[Affine, Affine] | None:
    """Both layers of a chain of a layer, element-wise functions, and a layer."""
    if len(branch.nodes) < 2:
        return None
    first, *between, last = branch.nodes
    if not all(map(elementwise, between)):
        return None
    layers = [affine(model, first), affine(model, last)]
    one, two = layers
    if not isinstance(one, Affine) or not isinstance(two, Affine):
        return None
    return one, two


# -- kernels ---------------------------------------------------------------------------------------


def placed(model: Model, small: Affine, large: Affine) -> Tensor | str:
    """The weight of one layer laid out as that of another, float64; or why it has no place there.

    A tap of a convolution reads the input at (position * dilation - padding): equal places add up.
    """
    weight, like = weight_of(model, small), weight_of(model, large)
    if small.form != "convolution" or large.form != "convolution":
        if (small.form == "convolution") != (large.form == "convolution"):
            return "one is a convolution, the other is none"
        return large.tensor(small.matrix(weight).double(), like.double())
    if small.groups != large.groups:
        return f"one is in {small.groups} groups, the other in {large.groups}"
    if small.stride != large.stride or weight.ndim != like.ndim:
        return "their strides differ"
    result = like.new_zeros(like.shape, dtype=torch.float64)
    window: list[Any] = [slice(None), slice(None)]
    for dim, (size, room) in enumerate(zip(weight.shape[2:], like.shape[2:], strict=True)):
        step = large.dilation[dim]
        if size > 1 and small.dilation[dim] != step:
            return "their dilations differ"
        first, rest = divmod(large.padding[dim][0] - small.padding[dim][0], step)
        if rest or first < 0 or first + size > room:
            return "the window of one does not hold that of the other"
        window.append(slice(first, first + size))
    result[tuple(window)] = weight.double()
    return result


def diagonal(model: Model, layer: Affine, scale: Tensor) -> Tensor | str:
    """A factor for each channel as a weight laid out like the layer's, float64."""
    like = weight_of(model, layer)
    outputs, inputs = len(like), like.shape[1] * layer.groups
    if layer.form != "convolution":
        outputs, inputs = layer.matrix(like).shape
    if outputs != inputs or len(scale) != outputs:
        return "numbers of channels differ"
    result = like.new_zeros(like.shape, dtype=torch.float64)
    if layer.form != "convolution":
        return layer.tensor(torch.diag(scale.double()), result)
    if any(s != 1 for s in layer.stride):
        return "it has a stride"
    taps: list[int] = []
    for dim, room in enumerate(like.shape[2:]):
        tap, rest = divmod(layer.padding[dim][0], layer.dilation[dim])
        if rest or tap >= room:
            return "no tap of the window reads the place itself"
        taps.append(tap)
    channels = torch.arange(outputs)
    index: Sequence[Any] = (channels, channels % like.shape[1], *taps)
    result[tuple(index)] = scale.double()
    return result
