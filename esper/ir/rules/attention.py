"""Scaled dot-product attention (PyTorch docs, `scaled_dot_product_attention`)."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules

aten = torch.ops.aten


def sdpa(r: Rules) -> Dims:
    """q (..., Hq, L, E), k (..., H, S, E), v (..., H, S, Ev), mask (..., L, S) -> (..., Hq, L, Ev).

    The scale is an explicit literal (canonicalisation made it so): it stays when E shrinks.
    """
    q, k, v = (r.of(r.arg(i)) for i in range(3))
    mask = r.arg(3, "attn_mask")
    r.unify(q[-1], k[-1])
    r.use((0,), len(q) - 1, q[-1])
    r.use((1,), len(k) - 1, k[-1])
    r.role(q[-1], "head-size")
    r.role(v[-1], "head-size")
    r.unify(k[-2], v[-2])
    r.freeze(k[-2], "attention over it")
    if r.arg(5, "is_causal", False):
        r.freeze(q[-2], "causal attention goes by position")
    if r.arg(7, "enable_gqa", False):
        heads, groups = r.shape(r.arg(0))[-3], r.shape(r.arg(1))[-3]
        within = r.fresh(heads // groups)
        r.role(within, "query-heads")
        r.unify(q[-3], r.product([k[-3], within]))
        r.unify(k[-3], v[-3])
        batch = [*r.broadcast(q[:-3], k[:-3], v[:-3]), q[-3]]
    else:
        batch = r.broadcast(q[:-2], k[:-2], v[:-2])
    for dim in batch[1:]:
        r.role(dim, "heads")
    if mask is not None:
        r.broadcast([*batch, q[-2], k[-2]], r.of(mask))
    return [*batch, q[-2], v[-1]]


TABLE: dict[Any, Rule] = {aten.scaled_dot_product_attention.default: sdpa}
