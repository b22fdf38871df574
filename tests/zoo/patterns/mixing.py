"""Gated and mixing MLPs, norms written by hand, residual streams without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import ids, image, pattern, rows, tokens


class GatedUnit(nn.Module):
    """`nn.GLU` behind one linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 12), nn.GLU(-1), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SwiGlu(nn.Module):
    """Gate and value in one projection, split by `chunk`; RMS norm by hand in front."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(8, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.gate_up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(5, 6, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return self.out(x + self.down(F.silu(gate) * up))


class InterleavedGlu(nn.Module):
    """Gate and value alternate, taken apart by strides (GPT-OSS) or by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 10), nn.Linear(5, 12)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        gate, up = y[..., ::2].clamp(max=7.0), y[..., 1::2].clamp(-7.0, 7.0)
        y = self.two((up + 1) * gate * torch.sigmoid(1.7 * gate))
        gate, up = y.unflatten(-1, (6, 2)).unbind(-1)
        return self.out(F.gelu(gate) * up)


class SpatialGate(nn.Module):
    """gMLP: half of the units gate the other half after a mix over places."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(8, 6)
        self.widen = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(6)
        self.places = nn.Conv1d(5, 5, 1)
        self.narrow = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        value, gate = F.gelu(self.widen(x)).chunk(2, dim=-1)
        return self.out(x + self.narrow(value * self.places(self.norm(gate))))


class Mixer(nn.Module):
    """MLP-Mixer over patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(3))
        self.places = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))
        self.channels = nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(dim=1))


class Fourier(nn.Module):
    """FNet: a transform over places in place of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(8, 6)
        self.mlp = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + torch.fft.fft(x, dim=1).real
        return self.out(self.norm(x + self.mlp(x)))


class HandNorms(nn.Module):
    """Layer norm by mean and std (Annotated Transformer), by var, by var_mean; L2 norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8 if i == 0 else 6, 6) for i in range(4))
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x = self.layers[1](self.scale * (x - mean) / (std + 1e-6) + self.shift)
        x = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(
            x.var(-1, unbiased=False, keepdim=True) + 1e-5
        )
        x = self.layers[2](x)
        var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        x = self.layers[3]((x - mean) / (var + 1e-5).sqrt())
        return self.out(x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6))


class ChannelNorms(nn.Module):
    """Group, instance (with running statistics) and channels-last layer norm; GRN of ConvNeXt 2."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.group = nn.GroupNorm(3, 6)
        self.instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.layer = nn.LayerNorm(6)
        self.gamma = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.convs[0](x)))
        x = F.relu(self.instance(self.convs[1](x)))
        x = self.layer(self.convs[2](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.convs[3](x).permute(0, 2, 3, 1)
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        x = self.gamma * (x * energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)) + x
        return self.head(x.mean((1, 2)))


class Embeddings(nn.Module):
    """Sums of words, positions and types; a bag of features; the table is tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.places = nn.Embedding(5, 6)
        self.types = nn.Parameter(torch.randn(2, 6))
        self.bag = nn.EmbeddingBag(11, 4, mode="mean")
        self.widen = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 6)
        self.order: Tensor
        self.register_buffer("order", torch.arange(5)[None])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(self.order[:, : ids.shape[1]]) + self.types[0]
        x = x + self.widen(self.bag(ids))[:, None]
        return F.linear(self.mix(self.norm(x)), self.words.weight)


class Bilinear(nn.Module):
    """Two views of the input meet in a bilinear layer; a scaled cosine at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 6)
        self.meet = nn.Bilinear(5, 6, 7)
        self.classes = nn.Parameter(torch.randn(3, 7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.meet(torch.relu(self.left(x)), torch.relu(self.right(x)))
        return 5.0 * F.linear(F.normalize(y, dim=-1), F.normalize(self.classes, dim=-1))


class Prototypes(nn.Module):
    """Distances to learned prototypes, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
        self.prototypes = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x), self.prototypes)


class Highway(nn.Module):
    """Highway, lerp and addcmul: sums weighed per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 6)
        self.gate, self.value = nn.Linear(6, 6), nn.Linear(6, 6)
        self.mix = nn.Parameter(torch.rand(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        y = torch.lerp(x, torch.tanh(self.value(x)), torch.sigmoid(self.gate(x)))
        return self.out(torch.addcmul(x, y, self.mix, value=0.5))


TABLE: tuple[Entry, ...] = (
    pattern("gated_unit", GatedUnit, rows(), reach={"neurons": 1}, fast=True),
    pattern("swiglu", SwiGlu, tokens(), reach={"embedding": 1, "neurons": 1}),
    pattern("interleaved_glu", InterleavedGlu, tokens(), reach={"neurons": 2}),
    pattern("spatial_gate", SpatialGate, tokens(), reach={"embedding": 1, "neurons": 1}),
    pattern("mixer", Mixer, image(), reach={"embedding": 1, "neurons": 2}, fast=True),
    pattern(
        "fourier", Fourier, tokens(), reach={"embedding": 1, "neurons": 1}, onnx="complex numbers"
    ),
    pattern("norms_by_hand", HandNorms, tokens(), reach={"embedding": 3, "neurons": 1}),
    pattern(
        "channel_norms", ChannelNorms, image(), reach={"groups": 1, "embedding": 3, "channels": 1}
    ),
    pattern("embedding_sums", Embeddings, ids(), reach={"embedding": 2}),
    pattern("bilinear", Bilinear, rows(), reach={"neurons": 3}),
    pattern("prototypes", Prototypes, rows(), reach={"neurons": 2}, onnx="no cdist"),
    pattern("highway", Highway, rows(), reach={"neurons": 1}),
)
