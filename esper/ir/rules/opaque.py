"""Ops whose results hang on every unit at once, or whose shapes hang on data: frozen, by name.

That they are listed says that nothing can be cut there, not that a rule is missing.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Rule, Rules

aten = torch.ops.aten


def opaque(reason: str) -> Rule:
    """All operands and results are frozen for `reason`."""

    def rule(r: Rules) -> Any:
        for operand in r.node.all_input_nodes:
            r.freeze_all(r.dims.get(operand), reason)
        value = r.node.meta["val"]
        if isinstance(value, (list, tuple)):
            return [_made(r, item, reason) for item in value]
        return _made(r, value, reason)

    return rule


def _made(r: Rules, value: Any, reason: str) -> Any:
    if not hasattr(value, "shape"):
        return None
    return [r.fresh(size, reason) for size in r.shape_of(value)]


_DATA = opaque("its size depends on data")
_ALL = opaque("every unit counts for the result")
_LOSS = opaque("a loss is taken over it")
_STRIDES = opaque("addressed by strides")

TABLE: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            aten.nonzero.default,
            aten.masked_select.default,
            aten.repeat_interleave.self_Tensor,
            aten.repeat_interleave.Tensor,
            aten._unique2.default,
            aten.unique_consecutive.default,
            aten.bincount.default,
        ),
        _DATA,
    ),
    **dict.fromkeys(
        (
            aten.histc.default,
            aten.take.default,
            aten.isin.Tensor_Tensor,
            aten.masked_scatter.default,
            aten.multinomial.default,
            aten.quantile.scalar,
            aten.quantile.default,
            aten.median.default,
            aten.renorm.default,
            aten.dist.default,
            aten.pdist.default,
            aten.block_diag.default,
            aten.cartesian_prod.default,
            aten.vander.default,
            aten.matrix_exp.default,
            aten.linalg_inv.default,
            aten.linalg_solve.default,
            aten.linalg_cholesky.default,
            aten.linalg_qr.default,
            aten.linalg_svd.default,
            aten.linalg_det.default,
            aten.linalg_eigh.default,
            aten.linalg_pinv.default,
        ),
        _ALL,
    ),
    **dict.fromkeys(
        (
            aten.mse_loss.default,
            aten.l1_loss.default,
            aten.huber_loss.default,
            aten.smooth_l1_loss.default,
            aten.kl_div.default,
            aten.binary_cross_entropy.default,
            aten.binary_cross_entropy_with_logits.default,
            aten.nll_loss_nd.default,
            aten.cross_entropy_loss.default,
        ),
        _LOSS,
    ),
    aten.as_strided.default: _STRIDES,
}
