"""Units whose output is a known constant: their constant moves into the consumers' biases.

A unit of a linear or convolution layer whose incoming weights are all zero outputs its bias,
then whatever a chain of element-wise ops with one operand makes of it, whatever the input. A
consuming linear layer (or convolution without zero padding) adds `weight @ constant`, which its
bias can hold. Where any link of that chain is something else, the unit is not a known constant
and nothing is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.terms import Atom
from esper.plan import Edit, Insert, Ref, SetArg
from esper.state import Create, Op, Replace

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@dataclass
class Folded:
    """New biases, and the units whose constants they hold."""

    units: list[int] = field(default_factory=list)
    ops: dict[str, Op] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)


def folded_biases(model: Model, axis: Axis, gone: Sequence[int]) -> Folded:
    """Biases that absorb the constants of those `gone` units that are known constants."""
    result = Folded()
    uses = model.table.uses_of.get(axis.atom, [])
    nodes = model.nodes
    consumers = [nodes[use.node] for use in uses]
    if not consumers or any(use.term != Atom(axis.atom) for use in uses):
        return result
    if not all(_adds_linearly(consumer) for consumer in consumers):
        return result
    values = [_constants(model, consumer.args[0]) for consumer in consumers]
    known = [unit for unit in gone if all(v is not None and bool(v[1][unit]) for v in values)]
    known = [unit for unit in known if any(v is not None and v[0][unit] != 0 for v in values)]
    if not known:
        return result
    for consumer, value in zip(consumers, values, strict=True):
        assert value is not None
        if not _absorb(model, consumer, value[0], known, consumers, result):
            return Folded()
    result.units = known
    return result


def _adds_linearly(node: fx.Node) -> bool:
    if not _reads(node, 1) or not (len(node.args) < 3 or node.args[2] is None or _reads(node, 2)):
        return False
    if node.target is aten.linear.default:
        return True
    if node.target not in _CONVOLUTIONS:
        return False
    padding: Any = node.args[4] if len(node.args) > 4 else 0
    groups: Any = node.args[6] if len(node.args) > 6 else 1
    return bool(groups == 1 and padding in (0, [0], [0, 0], [0, 0, 0]))


def _reads(node: fx.Node, position: int) -> bool:
    """Whether an operand is a parameter or buffer itself, not something computed."""
    operand = node.args[position] if position < len(node.args) else None
    return isinstance(operand, fx.Node) and operand.op == "get_attr"


def _constants(model: Model, node: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Per unit: its constant output and whether it is constant; None where unknown."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.linear.default or node.target in _CONVOLUTIONS:
        bias_node = node.args[2] if len(node.args) > 2 else None
        if not _reads(node, 1) or not (bias_node is None or _reads(node, 2)):
            return None
        weight = model.tensor(str(node.args[1].target))  # type: ignore[union-attr]
        if weight is None:
            return None
        constant = weight.detach().flatten(1).eq(0).all(dim=1)
        if bias_node is None:
            return weight.new_zeros(weight.shape[0]), constant
        bias = model.tensor(str(bias_node.target))  # type: ignore[union-attr]
        return None if bias is None else (bias.detach().clone(), constant)
    single = len(node.all_input_nodes) == 1 and isinstance(node.target, torch._ops.OpOverload)
    quiet = single and torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
    if node.target is aten.dropout.default and node.args[2] is False:
        return _constants(model, node.args[0])
    if not quiet or torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        return None
    inner = _constants(model, node.args[0])
    if inner is None:
        return None
    value = node.target(inner[0], *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return value, inner[1]


def _absorb(
    model: Model,
    node: fx.Node,
    value: torch.Tensor,
    units: list[int],
    consumers: Sequence[fx.Node],
    result: Folded,
) -> bool:
    """Add the constant to the bias of one consumer; False where no bias can hold it."""
    read = node.args[1]
    assert isinstance(read, fx.Node)
    weight = model.tensor(str(read.target))
    assert weight is not None
    columns = (
        weight.detach()[:, units].double().flatten(2).sum(-1)
        if weight.ndim > 2
        else (weight.detach()[:, units].double())
    )
    extra = columns @ value[units].double()
    bias_node = node.args[2] if len(node.args) > 2 else None
    op: Op
    if isinstance(bias_node, fx.Node):
        name = model.canonical_names()[str(bias_node.target)]
        bias = model.tensor(name)
        assert bias is not None
        op = Replace((bias.detach().double() + extra).to(bias.dtype))
        readers = [model.nodes[reader] for reader in model.readers()[name]]
        if any(user not in consumers for reader in readers for user in reader.users):
            return False  # others read this bias too
    else:
        name = f"{str(read.target).rpartition('.')[0]}.bias".lstrip(".")
        if any(existing == name for existing, _ in model.all_tensors()):
            return False
        op = Create(extra.to(weight.dtype), trainable=weight.requires_grad)
        new = f"{node.name}_bias"
        result.edits.append(Insert(new, "get_attr", name, (), node.name))
        arguments = [Ref(a.name) if isinstance(a, fx.Node) else a for a in node.args]
        arguments[2:3] = [Ref(new)]
        result.edits.append(SetArg(node.name, (), tuple(arguments)))
    known = result.ops.setdefault(name, op)
    # A layer that is called twice has one bias for two constants: they must agree.
    return known is op or _value(known).equal(_value(op))


def _value(op: Op) -> torch.Tensor:
    assert isinstance(op, (Create, Replace))
    return op.value
