"""How code is put together: splits, in-place writes, tied weights, reuse, views, masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import ids, pattern, rows, series, tokens


class Splits(nn.Module):
    """Split, chunk, tensor_split, narrow and unbind of one projection, stacked again."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 20)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.inp(x).split([8, 4, 8], dim=-1)
        first, second = a.chunk(2, -1)
        third, fourth = c.view(-1, 2, 4).unbind(1)
        parts = torch.stack([first, second, b, third, fourth], dim=1)
        return self.out(torch.tanh(parts)).sum(1)


class UnevenSkips(nn.Module):
    """Concatenated skips read at other places than they were joined."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 7)
        self.left, self.right = nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.relu(torch.cat((self.one(x), self.two(x)), dim=-1))
        return self.left(joined[:, :8]) + self.right(joined[:, 8:])


class Writes(nn.Module):
    """In-place ops on views: halves scaled, a slice overwritten, a buffer filled step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.other = nn.Linear(4, 8), nn.Linear(4, 3)
        self.out = nn.Linear(8, 3)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x).clone()
        h[:, :3] *= 0.5
        h[:, 3:6] = self.other(x)
        h[:, 6:].clamp_(min=0.0)
        board = x.new_zeros(x.shape[0], 6)
        board[:, :3] += self.other(x)
        return self.out(h) + self.last(board.sigmoid_())


class Recycled(nn.Module):
    """One layer called three times, with a residual and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.shared = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for _ in range(3):
            x = x + self.act(self.shared(x))
        return self.out(x)


class Siamese(nn.Module):
    """One tower for two inputs; difference and product are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
        self.out = nn.Linear(10, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.tower(a), self.tower(b)
        return self.out(torch.cat([(a - b).abs(), a * b], 1))


class TiedAutoEncoder(nn.Module):
    """The decoder is the encoder transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.two(torch.relu(self.one(x))))
        return F.linear(torch.relu(F.linear(code, self.two.weight.t())), self.one.weight.T)


class TiedHead(nn.Module):
    """Language model: the table of words is also the last layer, by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.mlp(x))


class MaskedMean(nn.Module):
    """A mean over tokens that are not padding; the mask comes from the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.inner = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids.ne(0).unsqueeze(-1)
        y = torch.where(mask, torch.tanh(self.inner(self.embed(ids))), 0.0)
        return self.out(y.sum(1) / mask.sum(1).clamp(min=1))


class MaxOut(nn.Module):
    """Maxout: the best of pieces of a linear; then the top values of each unit over time."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = nn.Linear(8, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pieces(x).unflatten(-1, (6, 2)).amax(-1)
        return self.out(y.topk(2, dim=1).values.flatten(1))


class SymbolicViews(nn.Module):
    """Batch and length merge and part again, by sizes read at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n = x.size(0), x.size(1)
        y = self.norm(self.inner(x.reshape(b * n, -1)))
        y = F.relu(y).view(b, n, y.shape[-1]).transpose(0, 1).contiguous()
        return self.out(y.view(n * b, -1)).view(n, b, -1).transpose(0, 1)


class NormAfterCat(nn.Module):
    """A batch norm over two branches side by side; one of them is frozen by a contract."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 1)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.cat([x, self.conv(x)], dim=1)))


class Fixed(nn.Module):
    """Units permuted and picked by constant positions: rightly out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.out = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3)
        self.order: Tensor
        self.register_buffer("order", torch.tensor([3, 1, 5, 0, 2, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.out(self.inner(x)[:, self.order])))


class ModeSwitch(nn.Module):
    """Dropouts of several kinds, between norms that keep statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6, momentum=0.3)
        self.drop = nn.Dropout(0.0)
        self.two = nn.Conv1d(6, 5, 1)
        self.affineless = nn.BatchNorm1d(5, affine=False)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.hardswish(self.norm(self.one(x))))
        return self.out(F.dropout(self.affineless(self.two(x)), 0.0, self.training).amax(-1))


TABLE: tuple[Entry, ...] = (
    pattern("splits", Splits, rows(), reach={"neurons": 1}, fast=True),
    pattern("uneven_skips", UnevenSkips, rows(), reach={"neurons": 3}),
    pattern("in_place_writes", Writes, rows(), reach={"neurons": 3, "units": 1}, fast=True),
    pattern("recycled_layer", Recycled, rows(), reach={"neurons": 1}),
    pattern("siamese", Siamese, rows(), rows(), reach={"neurons": 2}),
    pattern("tied_autoencoder", TiedAutoEncoder, rows(), reach={"neurons": 2}),
    pattern("tied_head", TiedHead, ids(), reach={"embedding": 1, "neurons": 1}),
    pattern("masked_mean", MaskedMean, ids(), reach={"embedding": 1, "neurons": 1}),
    pattern("maxout", MaxOut, tokens(), reach={"neurons": 2}),
    pattern("symbolic_views", SymbolicViews, tokens(), reach={"neurons": 1}),
    pattern("norm_after_cat", NormAfterCat, series(), reach={"channels": 1}),
    pattern(
        "fixed_positions",
        Fixed,
        rows(),
        reach={"neurons": 1},
        stops={"axis:inner/neurons": "addressed by data (index)"},
    ),
    pattern("mode_switch", ModeSwitch, series(), reach={"channels": 2}),
)
