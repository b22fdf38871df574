"""Experts, memories and latents: dense and gathered routing, perceivers, codebooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import pattern, rows, tokens


class DenseExperts(nn.Module):
    """Every expert computes, a softmax weighs them (soft mixture)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(0.3 * torch.randn(4, 8, 6))
        self.down = nn.Parameter(0.3 * torch.randn(4, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        gates = F.softmax(self.router(x), dim=-1)
        hidden = F.gelu(torch.einsum("bnd,edh->benh", x, self.up))
        out = torch.einsum("benh,ehd->bend", hidden, self.down)
        return torch.einsum("bne,bend->bnd", gates, out)


class ListedExperts(nn.Module):
    """Experts as modules in a list, their outputs stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(2)
        )
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        outs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.out((gates.unsqueeze(-1) * outs).sum(1))


class TopExperts(nn.Module):
    """The best two of four, scattered back to a dense table of gates."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.up = nn.Parameter(0.3 * torch.randn(4, 8, 12))
        self.down = nn.Parameter(0.3 * torch.randn(4, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        best, chosen = torch.topk(self.router(tokens), 2, dim=-1)
        gates = torch.zeros(tokens.shape[0], 4, dtype=x.dtype).scatter(1, chosen, best.softmax(-1))
        gate, up = torch.matmul(tokens, self.up).chunk(2, -1)
        out = torch.bmm(F.silu(gate) * up, self.down)
        return (out * gates.t()[..., None]).sum(0).view_as(x)


class GatheredExperts(nn.Module):
    """Weights of the chosen expert are gathered per item."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.up = nn.Parameter(0.3 * torch.randn(3, 6, 4))
        self.down = nn.Parameter(0.3 * torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        hidden = torch.relu(torch.bmm(self.up[chosen], x[..., None]))
        return torch.bmm(self.down.index_select(0, chosen), hidden).squeeze(-1)


class Perceiver(nn.Module):
    """Learned latents read the input by cross attention, then talk among themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, 8))
        self.read = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.latents.expand(x.shape[0], -1, -1)
        z = z + self.read(z, x, x, need_weights=False)[0]
        z = z + self.mlp(z)
        return self.head(z.mean(1))


class Queries(nn.Module):
    """DETR: every learned query is an output of its own; the first one is special."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(4, 8)
        self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8)
        self.box, self.label = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self.queries.weight[None].repeat(x.shape[0], 1, 1)
        scores = q @ self.k(x).transpose(1, 2) / 8**0.5
        y = scores.softmax(-1) @ self.v(x)
        return self.box(y).sigmoid(), self.label(y[:, 0])


class ExternalMemory(nn.Module):
    """External attention: keys and values are learned slots."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 6)
        self.keys = nn.Linear(6, 5, bias=False)
        self.values = nn.Linear(5, 6, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.keys(self.query(x)).softmax(dim=1)
        weights = weights / (1e-9 + weights.sum(dim=2, keepdim=True))
        return self.out(self.values(weights))


class MemoryTokens(nn.Module):
    """Slots addressed by content, by matmuls and a softmax over slots."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 6)
        self.slots = nn.Parameter(torch.randn(7, 6))
        self.contents = nn.Parameter(torch.randn(7, 5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.query(x) @ self.slots.t() / 6**0.5, dim=-1)
        return self.out(weights @ self.contents)


class Codebook(nn.Module):
    """VQ: the nearest code replaces what was encoded, straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
        self.codes = nn.Embedding(7, 5)
        self.decode = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        apart = z.pow(2).sum(1, keepdim=True) - 2 * z @ self.codes.weight.t()
        nearest = (apart + self.codes.weight.pow(2).sum(1)).argmin(1)
        code = F.embedding(nearest, self.codes.weight)
        return self.decode(z + (code - z).detach())


class Capsules(nn.Module):
    """Routing by agreement between capsules."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Linear(8, 12)
        self.votes = nn.Parameter(0.3 * torch.randn(3, 4, 4, 5))
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.primary(x.mean(1)).view(-1, 3, 4)
        votes = torch.einsum("bik,iokc->bioc", inner, self.votes)
        scores = torch.zeros_like(votes[..., 0])
        for _ in range(2):
            pose = (scores.softmax(2).unsqueeze(-1) * votes).sum(1)
            size = pose.pow(2).sum(-1, keepdim=True)
            pose = pose * size.sqrt() / (1 + size)
            scores = scores + (votes * pose.unsqueeze(1)).sum(-1)
        return self.out(pose)


TABLE: tuple[Entry, ...] = (
    pattern("dense_experts", DenseExperts, tokens(), reach={"neurons": 1, "units": 1}, fast=True),
    pattern("listed_experts", ListedExperts, rows(), reach={"neurons": 3}),
    pattern("top_experts", TopExperts, tokens(), reach={"experts": 1, "neurons": 1}),
    pattern("gathered_experts", GatheredExperts, rows(), reach={"experts": 1, "head-size": 1}),
    pattern(
        "perceiver",
        Perceiver,
        tokens(),
        reach={"heads": 1, "head-size": 1, "embedding": 1, "neurons": 1},
    ),
    pattern("learned_queries", Queries, tokens(), reach={"head-size": 2}),
    pattern("external_memory", ExternalMemory, tokens(), reach={"neurons": 3}),
    pattern("memory_tokens", MemoryTokens, tokens(), reach={"neurons": 2, "units": 1}),
    pattern("codebook", Codebook, rows(), reach={"neurons": 2, "embedding": 1, "vocabulary": 1}),
    pattern("capsules", Capsules, tokens(), reach={"neurons": 2, "units": 1}),
)
