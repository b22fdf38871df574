"""Attention with layers for queries, keys and values, and near misses of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

HEADS, SIZE, WIDTH = 4, 4, 16


class Attention(nn.Module):
    """x + attention, with as many heads of keys and values as are asked for."""

    def __init__(self, kv: int = HEADS, bias: bool = True, form: str = "view") -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * SIZE, bias=bias)
        self.k, self.v = (nn.Linear(WIDTH, kv * SIZE, bias=bias) for _ in range(2))
        self.out = nn.Linear(HEADS * SIZE, WIDTH)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """(batch, sequence, 16) -> the same."""
        batch, sequence, _ = x.shape

        def split(y: Tensor) -> Tensor:
            y = y.view(batch, sequence, -1, SIZE)
            return y.permute(0, 2, 1, 3) if self.form == "permute" else y.transpose(1, 2)

        source = x.tanh() if self.form == "other input" else x
        queries: Any = self.q(x)
        q, k, v = split(queries), split(self.k(source)), split(self.v(x))
        y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        if self.form == "read twice":
            y = y + split(queries.tanh())
        out: Tensor = x + self.out(y.transpose(1, 2).reshape(batch, sequence, -1))
        return out
