"""Small models that hold every kind of axis that growth reaches, for tests of many growths each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FusedBlock(nn.Module):
    """q, k and v in one matrix, layer norms before the branches (GPT-2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 10), nn.Linear(10, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, sequence, width]."""
        parts = self.qkv(self.ln_1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(functional.gelu(self.up(self.ln_2(x))))
        return y


class Fused(nn.Module):
    """A decoder whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 12), nn.Embedding(5, 12)
        self.block, self.norm = FusedBlock(12, 3), nn.LayerNorm(12)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.tokens(ids) + self.places(torch.arange(5))
        return functional.linear(self.norm(self.block(x)), self.tokens.weight)


class RMSNorm(nn.Module):
    """Written out, as most checkpoints have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Over the last dim."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Rotary(nn.Module):
    """Grouped queries, rotary positions, RMS norms, a gated perceptron (Llama)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 12)
        self.norm, self.middle, self.last = RMSNorm(12), RMSNorm(12), RMSNorm(12)
        self.q, self.k, self.v = (nn.Linear(12, n, bias=False) for n in (24, 8, 8))
        self.o = nn.Linear(24, 12, bias=False)
        self.gate, self.up = nn.Linear(12, 10, bias=False), nn.Linear(12, 10, bias=False)
        self.down, self.head = nn.Linear(10, 12, bias=False), nn.Linear(12, 11, bias=False)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3]))

    def _turn(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(5), self.frequencies)  # type: ignore[arg-type]
        angles = torch.cat([angles, angles], -1).to(x)
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + turned * angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        x = self.tokens(ids)
        y = self.norm(x)
        q, k, v = (f(y).view(-1, 5, n, 4).transpose(1, 2) for f, n in self._parts())
        k, v = (t[:, :, None].expand(-1, 2, 3, 5, 4).reshape(-1, 6, 5, 4) for t in (k, v))
        mixed = functional.scaled_dot_product_attention(self._turn(q), self._turn(k), v)
        x = x + self.o(mixed.transpose(1, 2).reshape(-1, 5, 24))
        y = self.middle(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        logits: Tensor = self.head(self.last(x))
        return logits

    def _parts(self) -> list[tuple[nn.Linear, int]]:
        return [(self.q, 6), (self.k, 2), (self.v, 2)]


class Written(nn.Module):
    """Attention written out over patches with a class token (ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 5, 12))
        self.norm, self.last = nn.LayerNorm(12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.norm(x)
        q, k, v = (f(y).view(-1, 5, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) * 0.5).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(-1, 5, 12))
        logits: Tensor = self.head(self.last(x)[:, 0])
        return logits


class Convolutional(nn.Module):
    """A residual stream with batch norms, depthwise, squeeze-excite, a skip, going up again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.expand, self.depth = nn.Conv2d(6, 9, 1), nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.bn_1, self.bn_2 = nn.BatchNorm2d(9), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 9, 1)
        self.project = nn.Conv2d(9, 6, 1, bias=False)
        self.reduce, self.rise = nn.Conv2d(6, 5, 2, 2), nn.ConvTranspose2d(5, 7, 2, 2)
        self.head = nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps."""
        x = functional.relu(self.bn(self.stem(x)))
        y = functional.silu(self.bn_1(self.depth(self.expand(x))))
        gate = self.excite(functional.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        x = x + self.bn_2(self.project(y * gate.sigmoid()))
        up = self.rise(functional.relu(self.reduce(x)))
        maps: Tensor = self.head(torch.cat([x, up], 1))
        return maps


def _ids() -> Tensor:
    return torch.randint(0, 11, (3, 5))


def _image() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "fused": (Fused, _ids),
    "rotary": (Rotary, _ids),
    "written": (Written, _image),
    "convolutional": (Convolutional, _image),
}


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model in float64 and evaluation mode, vectors away from neutral values, and its inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make, inputs = MODELS[name]
        module = make().double().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
            for key, buffer in module.named_buffers():
                if key.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
        return module, (inputs(),)
