"""Linear layers that a kernel could compute: what they read, in whatever form they are written.

`linear`, `addmm`, `mm` and `matmul` with a weight that serves nothing else: a stored one, one
behind a mask (`esper.ir.sparsity`), or int8 with a scale for each output
(`quantize{mode=weight-int8}`); and layers that multiply integers (`quantize`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from esper.ir.codec import decode_target, encode_target
from esper.ir.origin import Origin
from esper.ir.weights import MASK
from esper.plan import Refusal
from esper_passes.integer_layer import integer_layer

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
# Op -> positions of x, the weight and the bias, and whether the weight is (inputs, outputs).
_FORMS: dict[Any, tuple[int, int, int | None, bool]] = {
    aten.linear.default: (0, 1, 2, False),
    aten.addmm.default: (1, 2, 0, True),
    aten.mm.default: (0, 1, None, True),
    aten.matmul.default: (0, 1, None, True),
}


@dataclass(frozen=True)
class Lowerable:
    """One linear layer.

    Attributes:
        node: its node.
        x: what it multiplies, (..., inputs).
        read: the node that reads the stored weight.
        weight: first name of that tensor, floating or int8.
        columns: whether the weight is stored as (inputs, outputs).
        bias: node of the bias.
        scale: node that reads the scales of an int8 weight.
        mask: node that reads the mask of a masked weight.
        between: node that makes the weight of integers and scales, or of the mask.
        rounding: calls before the node that round x and multiply integers, see `integer_layer`.
    """

    node: fx.Node
    x: fx.Node
    read: fx.Node
    weight: str
    columns: bool
    bias: fx.Node | None
    scale: fx.Node | None = None
    mask: fx.Node | None = None
    between: fx.Node | None = None
    rounding: tuple[fx.Node, ...] = ()

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (outputs, inputs)."""
        return tensor.T if self.columns else tensor

    @property
    def size(self) -> tuple[int, int]:
        """Outputs and inputs."""
        first, second = (int(size) for size in self.read.meta["val"].shape)
        return (second, first) if self.columns else (first, second)

    def origin(self) -> tuple[Origin, ...]:
        """The calls that a kernel takes over, in graph order. A mask is not remembered."""
        if self.rounding:
            return origins(*self.rounding, self.node)
        calls = [self.node] if self.scale is None else [self.between, self.node]
        return origins(*(call for call in calls if call is not None))


def origins(*nodes: fx.Node) -> tuple[Origin, ...]:
    """What is remembered of calls, given in graph order."""
    names = {node.name for node in nodes}
    return tuple(
        Origin(
            node.name,
            encode_target(node.target),
            tuple(n.name for n in node.all_input_nodes if n.name in names),
            str(node.meta.get("module") or ""),
            str(node.meta.get("source") or ""),
        )
        for node in nodes
    )


def turned(layer: Origin) -> bool:
    """Whether a layer stores its weight as (inputs, outputs)."""
    return _FORMS[decode_target(layer.op)][3]


def lowerable(model: Model, node: fx.Node) -> Lowerable | Refusal | None:
    """The layer at a node; a refusal where it cannot be lowered; None for what is no such layer."""
    form = _FORMS.get(node.target)
    if form is None:
        return None
    at_x, at_weight, at_bias, columns = form
    args: list[Any] = list(node.args)
    weight = _weight(args[at_weight])
    if weight is None:
        return None
    bias = args[at_bias] if at_bias is not None and at_bias < len(args) else None
    if node.kwargs or weight.read.meta["val"].ndim != 2 or not _vector(bias):
        return Refusal(
            "unusual-form", f"%{node.name} ({node.target}) has a form with no kernel", node.name
        )
    name = model.canonical_names()[str(weight.read.target)]
    layer = Lowerable(
        node, args[at_x], weight.read, name, columns, bias,
        weight.scale, weight.mask, weight.between,
    )  # fmt: skip
    return _unfit(model, layer) or layer


def rounded(model: Model, node: fx.Node) -> Lowerable | Refusal | None:
    """The layer at a node that rounds its inputs and multiplies integers, as for `lowerable`."""
    found = integer_layer(node)
    if found is None:
        return None
    name = model.canonical_names()[str(found.values.target)]
    layer = Lowerable(
        node, found.x, found.values, name, False, found.bias, found.scale, rounding=found.calls
    )
    for value in (found.rows, found.scale):
        if value.meta["val"].dtype != torch.float32:
            return Refusal(
                "mixed-dtypes",
                f"%{node.name} rounds with {value.meta['val'].dtype}, and the kernel with float32",
                node.name,
                "cast the model before it is quantised",
            )
    inside = {node, *found.calls}
    if any(user not in inside for call in found.calls for user in call.users):
        return Refusal(
            "shared-value",
            f"what %{node.name} computes on the way serves other places too",
            node.name,
            "quantise the layer by itself",
        )
    return _unfit(model, layer) or layer


class _Weight(NamedTuple):
    """Nodes behind an operand, as in `Lowerable`."""

    read: fx.Node
    between: fx.Node | None = None
    scale: fx.Node | None = None
    mask: fx.Node | None = None


def _weight(operand: Any) -> _Weight | None:
    if _reads(operand):
        return _Weight(operand)
    if not isinstance(operand, fx.Node):
        return None
    args: list[Any] = list(operand.args)
    if operand.target is MASK and _reads(args[0]) and _reads(args[1]):
        return _Weight(args[1], operand, mask=args[0])
    if operand.target is aten.mul.Tensor and all(map(_reads, args)):
        integers = [node for node in args if node.meta["val"].dtype == torch.int8]
        scales = [node for node in args if node.meta["val"].is_floating_point()]
        if len(integers) == len(scales) == 1:
            return _Weight(integers[0], operand, scale=scales[0])
    return None


def _reads(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _vector(bias: Any) -> bool:
    return bias is None or (isinstance(bias, fx.Node) and bias.meta["val"].ndim == 1)


def _unfit(model: Model, layer: Lowerable) -> Refusal | None:
    name, nodes = layer.node.name, model.nodes
    if layer.bias is not None and layer.bias.meta["val"].shape[0] != layer.size[0]:
        return Refusal("unusual-form", f"%{name} has one bias for all of its outputs", name)
    users = [u for read in model.readers().get(layer.weight, ()) for u in nodes[read].users]
    if len(users) > 1 or (layer.between is not None and len(layer.between.users) > 1):
        return Refusal(
            "shared-tensor",
            f"{layer.weight} serves other places too, which would have to unpack it",
            name,
            "untie the tensor before",
        )
    given = layer.read if layer.scale is None else layer.scale
    x, weight = layer.x.meta["val"].dtype, given.meta["val"].dtype
    if not layer.rounding and (x != weight or not weight.is_floating_point):
        return Refusal(
            "mixed-dtypes",
            f"%{name} multiplies {x} by {weight}, for which there is no kernel",
            name,
            "cast the layer first",
        )
    if layer.scale is None:
        return None
    outputs = layer.size[0]
    column: tuple[int, ...] = (1, outputs) if layer.columns else (outputs, 1)
    if layer.rounding:
        column = (outputs,)
    if tuple(layer.scale.meta["val"].shape) != column:
        return Refusal(
            "odd-scales",
            f"{layer.scale.target} has shape {tuple(layer.scale.meta['val'].shape)}, and kernels "
            f"have one scale for each of {outputs} outputs",
            name,
            "quantise it with quantize{mode=weight-int8}",
        )
    return None
