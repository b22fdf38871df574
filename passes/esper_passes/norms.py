"""Norms over units, as one op or written out: where their weight, bias and epsilon are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.plan import Path, Ref

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)


@dataclass(frozen=True)
class Norm:
    """A layer or RMS norm over one dim.

    Attributes:
        input: what is normalised.
        centred: whether the mean is taken off.
        weight, bias: nodes that read them, or None.
        epsilon: node, argument path and value of epsilon, where it is a literal.
        rewritten: arguments of the norm for an epsilon times a factor, where it is not.
    """

    input: fx.Node
    centred: bool
    weight: fx.Node | None
    bias: fx.Node | None
    epsilon: tuple[str, Path, float] | None
    rewritten: Callable[[float], tuple[Any, ...]] | None = None


def norm_of(model: Model, node: fx.Node) -> Norm | None:
    """The norm that takes its statistics at `node`; None where it is no norm over one dim."""
    if node.target is aten.layer_norm.default:
        return _fused(node, centred=True, default=1e-5, affine=(2, 3), at=4)
    if node.target is aten.rms_norm.default:
        x: Any = node.args[0]
        default = torch.finfo(x.meta["val"].dtype).eps
        return _fused(node, centred=False, default=default, affine=(2,), at=3)
    if node.target is aten.mean.dim:
        return _written_out(node)
    return None


def _fused(
    node: fx.Node, *, centred: bool, default: float, affine: tuple[int, ...], at: int
) -> Norm | None:
    args: Any = [*node.args, *[None] * (at + 1 - len(node.args))]
    if len(args[1]) != 1 or node.kwargs:
        return None
    reads = [args[i] for i in affine]
    if any(read is not None and read.op != "get_attr" for read in reads):
        return None
    weight, bias = (*reads, None)[:2]
    if args[at] is not None:
        return Norm(args[0], centred, weight, bias, (node.name, (at,), float(args[at])))

    def rewritten(factor: float) -> tuple[Any, ...]:
        filled = [*args[:at], default * factor, *args[at + 1 :]]
        return tuple(Ref(a.name) if isinstance(a, fx.Node) else a for a in filled)

    return Norm(args[0], centred, weight, bias, None, rewritten)


def _written_out(mean: fx.Node) -> Norm | None:
    """`weight * x * rsqrt(mean(x ** 2) + eps)`, casts between."""
    square: Any = mean.args[0]
    if square.target is not aten.pow.Tensor_Scalar or square.args[1] != 2:
        return None
    shifted = _only_user(mean)
    if shifted is None or shifted.target is not aten.add.Tensor or shifted.args[0] is not mean:
        return None
    epsilon = shifted.args[1]
    root = _only_user(shifted)
    if not isinstance(epsilon, float) or root is None or root.target is not aten.rsqrt.default:
        return None
    scaled = _only_user(root)
    while scaled is not None and scaled.target in _CASTS:
        scaled = _only_user(scaled)
    if scaled is None or scaled.target is not aten.mul.Tensor:
        return None
    product = _only_user(scaled)
    while product is not None and product.target in _CASTS:
        product = _only_user(product)
    weight = None
    if product is not None and product.target is aten.mul.Tensor:
        reads = [a for a in product.all_input_nodes if a.op == "get_attr"]
        weight = reads[0] if len(reads) == 1 else None
    return Norm(square.args[0], False, weight, None, (shifted.name, (1,), epsilon))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
