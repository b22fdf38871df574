"""Attention: torch's layer, fused projections, grouped queries, rotary, einsum, cross, masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import pattern, tokens

WIDTH, HEADS, HEAD = 8, 2, 4


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention` with a residual and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(8, WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.out(self.norm(x + self.attn(x, x, x, need_weights=False)[0]))


class TorchCrossAttention(nn.Module):
    """Keys and values of other widths, so that the projections are apart; weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        out, weights = self.attn(x, memory, memory)
        return out, weights


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` between an embedding and a head."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.inp = nn.Linear(8, WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 12, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.inp(x)))


class DecoderLayer(nn.Module):
    """`nn.TransformerDecoderLayer` with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.told = nn.Linear(8, WIDTH), nn.Linear(6, WIDTH)
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True)
        self.out = nn.Linear(WIDTH, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.out(self.layer(self.inp(x), self.told(memory), tgt_mask=self.mask, tgt_is_causal=True))


class GroupedQueries(nn.Module):
    """Four query heads on `groups` heads of keys and values, repeated by `repeat_interleave`."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.q = nn.Linear(8, 4 * HEAD, bias=False)
        self.kv = nn.Linear(8, 2 * groups * HEAD, bias=False)
        self.o = nn.Linear(4 * HEAD, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, HEAD).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        k = k.view(b, n, self.groups, HEAD).transpose(1, 2)
        v = v.view(b, n, self.groups, HEAD).transpose(1, 2)
        k = k.repeat_interleave(4 // self.groups, dim=1)
        v = v.repeat_interleave(4 // self.groups, dim=1)
        scores = q @ k.transpose(-2, -1) * HEAD**-0.5
        out = scores.softmax(-1) @ v
        return self.o(out.transpose(1, 2).reshape(b, n, -1))


class FusedQkv(nn.Module):
    """One projection, taken apart by a view with three in front (timm, DINO)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 3 * WIDTH)
        self.o = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * HEAD**-0.5) @ k.transpose(-2, -1)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, WIDTH))


class Rotary(nn.Module):
    """Rotary positions by halves, by interleaved pairs, or by complex numbers."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.q, self.k, self.v = (nn.Linear(8, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 8)
        angles = torch.outer(torch.arange(5.0), 10.0 ** -torch.arange(HEAD // 2))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        if self.style == "halves":
            a, b = x.chunk(2, -1)
            return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)
        if self.style == "pairs":
            a, b = x[..., ::2], x[..., 1::2]
            turned = [a * self.cos - b * self.sin, b * self.cos + a * self.sin]
            return torch.stack(turned, -1).flatten(-2)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        turned_pairs = pairs * torch.complex(self.cos, self.sin)
        return torch.view_as_real(turned_pairs).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(b, n, WIDTH))


class EinsumAttention(nn.Module):
    """Heads as dims of the weights, everything by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (
            nn.Parameter(0.3 * torch.randn(8, HEADS, HEAD)) for _ in range(3)
        )
        self.wo = nn.Parameter(0.3 * torch.randn(HEADS, HEAD, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnd,dhe->bnhe", x, w) for w in (self.wq, self.wk, self.wv))
        scores = torch.einsum("bnhe,bmhe->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bmhe,hed->bnd", scores, v, self.wo)


class CosineAttention(nn.Module):
    """Normalised queries and keys with a learned scale per head (Swin v2, ViT-22B)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, WIDTH) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.o = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale.exp()
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class LinearAttention(nn.Module):
    """Softmax over keys' positions and queries' features (Efficient Attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        context = k.softmax(-2).mT @ v
        return self.o((q.softmax(-1) @ context).transpose(1, 2).flatten(2))


class Masked(nn.Module):
    """A padding mask from the input and a causal one, filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, HEADS, HEAD).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / HEAD**0.5
        ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
        padding = (x[..., 0] > 2.0)[:, None, None, :]
        scores = scores.masked_fill(ahead, -1e4).masked_fill(padding, -1e4)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


class Pooling(nn.Module):
    """Attention pooling: learned scores weigh the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.value = nn.Linear(8, 6)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(1)
        return self.out((weights.mT @ self.value(x)).flatten(1))


_PACKED = {"heads": 1, "head-size": 1}  # one view takes three equal parts out
_APART = {"heads": 1, "head-size": 2}
TABLE: tuple[Entry, ...] = (
    pattern("torch_attention", TorchAttention, tokens(), reach={"embedding": 1, **_PACKED}, fast=True),
    pattern("torch_cross_attention", TorchCrossAttention, tokens(), tokens(4, 6), reach=_APART),
    pattern(
        "torch_encoder_layer",
        lambda: EncoderLayer(False),
        tokens(),
        reach={"embedding": 1, "neurons": 1, **_PACKED},
    ),
    pattern(
        "torch_encoder_layer_norm_first",
        lambda: EncoderLayer(True),
        tokens(),
        reach={"embedding": 1, "neurons": 1, **_PACKED},
    ),
    pattern(
        "torch_decoder_layer",
        DecoderLayer,
        tokens(),
        tokens(4, 6),
        reach={"embedding": 1, "heads": 2, "head-size": 2, "neurons": 1},
    ),
    pattern("grouped_queries", lambda: GroupedQueries(2), tokens(), reach={"kv-groups": 1, "head-size": 2, "query-heads": 1}),
    pattern("multi_query", lambda: GroupedQueries(1), tokens(), reach=_APART),
    pattern("fused_qkv", FusedQkv, tokens(), reach={"heads": 1, "head-size": 1}),
    pattern("rotary_halves", lambda: Rotary("halves"), tokens(), reach=_APART, fast=True),
    pattern("rotary_pairs", lambda: Rotary("pairs"), tokens(), reach=_APART),
    pattern(
        "rotary_complex",
        lambda: Rotary("complex"),
        tokens(),
        reach=_APART,
        onnx="complex numbers",
    ),
    pattern("einsum_attention", EinsumAttention, tokens(), reach={"units": 3}),
    pattern("cosine_attention", CosineAttention, tokens(), reach=_APART),
    pattern("linear_attention", LinearAttention, tokens(), reach=_APART),
    pattern("masked_attention", Masked, tokens(), reach=_APART),
    pattern("attention_pooling", Pooling, tokens(), reach={"neurons": 2, "head-size": 1}),
)
