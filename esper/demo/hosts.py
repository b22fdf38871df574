"""The models of the storyboards: small, ordinary, and traced before training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.demo.data import Data
from esper.ir.marker import Slot
from esper.ir.model import Model
from esper.ir.trace import trace


class StochasticDepth(nn.Module):
    """In training leaves a branch [N, ...] out, item by item, and scales up what stays.

    Huang et al. 2016, arXiv:1603.09382: no block comes to rely on any other one, so that single
    blocks of a deep network are redundant. `p`: the share of items that go without.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        ones = branch.new_ones((branch.shape[0], *[1] * (branch.ndim - 1)))
        return branch * functional.dropout(ones, self.p, self.training)


def _dropping(p: float) -> nn.Module:
    return StochasticDepth(p) if p else nn.Identity()


def _rates(drop: float, depth: int) -> list[float]:
    """Of each block: deeper ones are left out more often, the last one by `drop` (linear decay)."""
    return [drop * (i + 1) / depth for i in range(depth)]


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them (He et al. 2016), [N, C, H, W]."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.drop = _dropping(drop)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.drop(self.second(functional.relu(self.first(x))))
        return x + branch


class ImageNet(nn.Module):
    """Stem, a marked slot, residual blocks, pooling: images [N, 1, H, W] to logits [N, classes]."""

    def __init__(self, width: int, depth: int, drop: float, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 5, padding=2)
        self.grow = Slot()
        self.blocks = nn.Sequential(*[Block(width, p) for p in _rates(drop, depth)])
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = functional.avg_pool2d(functional.relu(self.stem(images)), 2)
        features = functional.relu(self.blocks(self.grow(stem)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class Attention(nn.Module):
    """Causal attention over [N, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    """Attention and a perceptron, each before a sum (pre-norm)."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.drop = _dropping(drop)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(x))
        branch: Tensor = self.drop(self.mlp(x))
        return x + branch


class CharacterModel(nn.Module):
    """A language model of characters: numbers [N, T] to logits [N, T, characters]."""

    def __init__(self, width: int, depth: int, drop: float, length: int, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*[Layer(width, 4, p) for p in _rates(drop, depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.layers(self.embedding(tokens) + self.position)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def image_host(data: Data, seed: int, width: int = 8, depth: int = 2, drop: float = 0.0) -> Model:
    """A traced `ImageNet` with weights from the seed; `drop` is the stochastic depth's."""
    sizes = (width, depth, drop, data.classes)
    return _drawn(ImageNet, sizes, tuple(data.train[0].shape[1:]), torch.float32, seed)


def text_host(data: Data, seed: int, width: int = 32, depth: int = 3, drop: float = 0.0) -> Model:
    """A traced `CharacterModel` with weights from the seed; `drop` is the stochastic depth's."""
    length = data.train[0].shape[1]
    sizes = (width, depth, drop, length, data.classes)
    return _drawn(CharacterModel, sizes, (length,), torch.int64, seed)


def _drawn(
    kind: Callable[..., nn.Module],
    sizes: tuple[float, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
) -> Model:
    """Tracing takes longer than a short run: each structure is traced once, weights are its own."""
    model = copy.deepcopy(_traced(kind, sizes, shape, dtype))
    torch.manual_seed(seed)
    model.load_state_dict(kind(*sizes).state_dict())
    return model


@cache
def _traced(
    kind: Callable[..., nn.Module],
    sizes: tuple[float, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Model:
    return trace(kind(*sizes), (torch.zeros(4, *shape, dtype=dtype),))
