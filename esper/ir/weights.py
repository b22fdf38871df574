"""Which weight a contraction reads, and along which of its dims units are consumed there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.terms import atoms_of

if TYPE_CHECKING:
    from esper.ir.axes import Use
    from esper.ir.model import Model

aten = torch.ops.aten
MASK = aten.where.ScalarOther  # where(mask, weight, 0): a masked weight, see `esper.ir.sparsity`
# Contractions: the operand that is a weight, and the weight's dim that is contracted.
CONTRACTIONS: dict[Any, tuple[int, int]] = {
    aten.linear.default: (1, 1),
    aten.matmul.default: (1, -2),
    aten.mm.default: (1, -2),
    aten.bmm.default: (1, -2),
    aten.addmm.default: (2, -2),
    **{getattr(aten, f"conv{n}d").default: (1, 1) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 1) for n in (1, 2, 3)},
    aten.conv_transpose1d.default: (1, 0),
    aten.conv_transpose2d.input: (1, 0),
    aten.conv_transpose3d.input: (1, 0),
}


def read_of(operand: Any) -> fx.Node | None:
    """The `get_attr` node behind an operand, masked or not; None for what is computed."""
    if isinstance(operand, fx.Node) and operand.target is MASK:
        operand = operand.args[1]
    return operand if isinstance(operand, fx.Node) and operand.op == "get_attr" else None


def weight_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The read of a contraction's weight and the dim that is contracted; None without a weight."""
    operand, dim = CONTRACTIONS.get(node.target, (-1, 0))
    read = read_of(node.args[operand]) if 0 <= operand < len(node.args) else None
    return None if read is None else (read, dim % read.meta["val"].ndim)


def consuming_dim(model: Model, use: Use, atom: int) -> tuple[str, int] | None:
    """Tensor and dim of the weight with which a use contracts an atom's units.

    In grouped convolutions the groups are no part of the contracted dim: there it is the dim of
    the outputs, each of which belongs to one group.
    """
    found = weight_of(model.nodes[use.node]) if use.kind == "zero" else None
    if found is None:
        return None
    read, contracted = found
    name = model.canonical_names()[str(read.target)]
    terms = model.table.tensors[name]
    for dim in (contracted, *range(len(terms))):
        if atom in atoms_of(terms[dim]):
            return name, dim
    return None
