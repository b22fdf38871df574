"""Cases of `tests.ir.test_rules`: attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, tokens


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES: dict[str, Case] = {
    "attention": Case(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                *(p(x).unflatten(-1, (3, 2)).transpose(1, 2) for p in (m.q, m.k, m.v))
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        lambda: {
            "q": nn.Linear(4, 6),
            "k": nn.Linear(4, 6),
            "v": nn.Linear(4, 6),
            "o": nn.Linear(6, 2),
        },
        tokens(),
        {"q/heads": 3, "q/head-size": 2, "v/head-size": 2},
    ),
    "fused attention": Case(
        lambda m, x: m.o(
            causal(*(t.view(-1, 5, 3, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1)))
            .transpose(1, 2)
            .reshape(-1, 5, 12)
        ),
        lambda: {"qkv": nn.Linear(4, 36), "o": nn.Linear(12, 2)},
        tokens(),
        {"qkv/heads": 3, "qkv/head-size": 4, "qkv/head-size.2": 4},
    ),
    "fused attention by selector": Case(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                *m.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            )
            .transpose(1, 2)
            .reshape(-1, 5, 8)
        ),
        lambda: {"qkv": nn.Linear(4, 24), "o": nn.Linear(8, 2)},
        tokens(),
        {"qkv/heads": 2, "qkv/head-size": 4},
        {"qkv/neurons": "taken apart by unbind"},
    ),
    "grouped queries": Case(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                m.q(x).view(-1, 5, 6, 2).transpose(1, 2),
                m.k(x).view(-1, 5, 2, 2).transpose(1, 2),
                m.v(x).view(-1, 5, 2, 2).transpose(1, 2),
                enable_gqa=True,
            )
            .transpose(1, 2)
            .reshape(-1, 5, 12)
        ),
        lambda: {
            "q": nn.Linear(4, 12),
            "k": nn.Linear(4, 4),
            "v": nn.Linear(4, 4),
            "o": nn.Linear(12, 2),
        },
        tokens(),
        {"q/kv-groups": 2, "q/query-heads": 3, "q/head-size": 2, "v/head-size": 2},
    ),
    "grouped queries expanded": Case(
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                m.q(x).view(-1, 5, 6, 2).transpose(1, 2),
                *(
                    p(x)
                    .view(-1, 5, 2, 2)
                    .transpose(1, 2)[:, :, None]
                    .expand(-1, 2, 3, 5, 2)
                    .reshape(-1, 6, 5, 2)
                    for p in (m.k, m.v)
                ),
            )
            .transpose(1, 2)
            .reshape(-1, 5, 12)
        ),
        lambda: {
            "q": nn.Linear(4, 12),
            "k": nn.Linear(4, 4),
            "v": nn.Linear(4, 4),
            "o": nn.Linear(12, 2),
        },
        tokens(),
        {"q/kv-groups": 2, "q/query-heads": 3, "q/head-size": 2, "v/head-size": 2},
    ),
    "rotary": Case(
        lambda m, x: m.o(
            (lambda h: h * m.cos + torch.cat([-h[..., 4:], h[..., :4]], -1) * m.sin)(m.l0(x))
        ),
        lambda: {
            "l0": nn.Linear(4, 8),
            "o": nn.Linear(8, 2),
            "cos": torch.rand(8),
            "sin": torch.rand(8),
        },
        tokens(),
        {"l0/neurons": 4},
    ),
}
