"""Nodes that compute `weight @ x + bias` with tensors of their own, seen as one matrix.

`linear`, `addmm` and `matmul` with a parameter, and convolutions in one or two dimensions, whose
rows are the patches under the kernel (im2col). One in several groups is a matrix for each group,
so only those see it who ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
)
_MATMULS = (aten.matmul.default, aten.mm.default)


@dataclass(frozen=True)
class Affine:
    """One layer as a matrix.

    Attributes:
        node: node name.
        form: where its tensors lie; `columns` stores the weight as (inputs, outputs).
        operand: position of the input among the node's arguments.
        weight, bias: names of the tensors, by their first name; no bias where it is None.
        new_bias: argument position at which a bias may be put in, or None.
        stride, padding, dilation: of a convolution; padding before and after each dimension.
        groups: of a convolution; with more than one, `rows` mean nothing.
    """

    node: str
    form: Literal["rows", "columns", "convolution"]
    operand: int
    weight: str
    bias: str | None
    new_bias: int | None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def matrix(self, weight: Tensor) -> Tensor:
        """Weight tensor -> (outputs, inputs)."""
        if self.form == "columns":
            return weight.T
        return weight.flatten(1)

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """(outputs, inputs) -> weight tensor with the shape and dtype of `like`."""
        if self.form == "columns":
            matrix = matrix.T
        return matrix.reshape(like.shape).to(like.dtype).contiguous()

    def rows(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Input value -> (rows, inputs), in the order of `outputs`."""
        if self.form != "convolution":
            return x.reshape(-1, x.shape[-1])
        pad = [side for sides in reversed(self.padding) for side in sides]
        x = functional.pad(x, pad) if any(pad) else x
        if len(kernel) == 1:
            patches = functional.unfold(
                x[:, :, None], (1, kernel[0]), (1, self.dilation[0]), 0, (1, self.stride[0])
            )
        else:
            patches = functional.unfold(x, kernel, self.dilation, 0, self.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def outputs(self, y: Tensor) -> Tensor:
        """Output value -> (rows, outputs)."""
        y = y.movedim(1, -1) if self.form == "convolution" else y
        return y.reshape(-1, y.shape[-1])

    @property
    def channel(self) -> int:
        """Dimension of the outputs in the output value."""
        return 1 if self.form == "convolution" else -1


@dataclass(frozen=True)
class Unfit:
    """Why a node cannot be refit: rule code, sentence and remedy."""

    code: str
    reason: str
    remedy: str = ""


def affine(model: Model, node: fx.Node, *, grouped: bool = False) -> Affine | Unfit | None:
    """The layer at a node; `Unfit` where it has a weight that cannot be solved for; else None.

    Args:
        model: that holds it.
        node: of the layer.
        grouped: whether a convolution in several groups will do.
    """
    found = _layer(model, node)
    if not isinstance(found, Affine):
        return found
    if found.groups != 1 and not grouped:
        return Unfit(
            "grouped-convolution",
            f"%{node.name} is a convolution in {found.groups} groups: its weight is no one matrix",
        )
    for name in (found.weight, found.bias):
        if name is not None and _readers(model, name) > 1:
            return Unfit(
                "shared-tensor",
                f"{name} serves other places too, which a refit of %{node.name} would change",
                "untie the tensor before",
            )
    weight = model.tensor(found.weight)
    if weight is None or not weight.dtype.is_floating_point:
        return Unfit("not-floating", f"the weight of %{node.name} is not in floating point")
    return found


def _layer(model: Model, node: fx.Node) -> Affine | Unfit | None:
    target, args = node.target, node.args
    if target is aten.linear.default and _reads(args[1]):
        if node.kwargs or args[1].meta["val"].ndim != 2:  # type: ignore[union-attr]
            return _odd(node)
        return _named(model, node, "rows", 0, args[1], args[2] if len(args) > 2 else None, 2)
    if target is aten.addmm.default and _reads(args[2]):
        if node.kwargs or not _reads(args[0]) or args[0].meta["val"].ndim != 1:  # type: ignore[union-attr]
            return _odd(node)
        return _named(model, node, "columns", 1, args[2], args[0], None)
    if target in _MATMULS and _reads(args[1]):
        if args[1].meta["val"].ndim != 2:  # type: ignore[union-attr]
            return _odd(node)
        return _named(model, node, "columns", 0, args[1], None, None)
    if target in CONVOLUTIONS and _reads(args[1]):
        return _convolution(model, node)
    return None


def _reads(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _odd(node: fx.Node) -> Unfit:
    return Unfit("unusual-form", f"%{node.name} ({node.target}) has a form that is not refit")


def _named(
    model: Model,
    node: fx.Node,
    form: Literal["rows", "columns", "convolution"],
    operand: int,
    weight: Any,
    bias: Any,
    new_bias: int | None,
    **window: Any,
) -> Affine | Unfit:
    if not isinstance(node.args[operand], fx.Node) or (bias is not None and not _reads(bias)):
        return _odd(node)
    names = model.canonical_names()
    first = names[str(weight.target)]
    second = None if bias is None else names[str(bias.target)]
    return Affine(
        node.name, form, operand, first, second, new_bias if bias is None else None, **window
    )


def _convolution(model: Model, node: fx.Node) -> Affine | Unfit:
    values: list[Any] = [*node.args, *[None] * (7 - len(node.args))]
    x, weight, bias, stride, padding, dilation, groups = values
    dims = weight.meta["val"].ndim - 2
    if node.kwargs or x.meta["val"].ndim != dims + 2:
        return _odd(node)
    kernel = tuple(int(k) for k in weight.meta["val"].shape[2:])
    steps, holes = _wide(stride, 1, dims), _wide(dilation, 1, dims)
    sides: tuple[tuple[int, int], ...]
    if padding == "same":
        span = [hole * (k - 1) for hole, k in zip(holes, kernel, strict=True)]
        sides = tuple((s // 2, s - s // 2) for s in span)
    else:
        sides = tuple((p, p) for p in _wide(0 if padding == "valid" else padding, 0, dims))
    return _named(
        model,
        node,
        "convolution",
        0,
        weight,
        bias,
        2,
        stride=steps,
        padding=sides,
        dilation=holes,
        groups=groups or 1,
    )


def _wide(value: Any, default: int, dims: int) -> tuple[int, ...]:
    if value is None:
        return (default,) * dims
    items = [value] if isinstance(value, int) else list(value)
    return tuple(items * dims if len(items) == 1 else items)


def _readers(model: Model, name: str) -> int:
    nodes = {n.name: n for n in model.graph.find_nodes(op="get_attr")}
    return sum(len(nodes[reader].users) for reader in model.readers().get(name, ()))
