"""Convolutional blocks: grouped, shuffled, separable, dense, inception, squeeze-excite, series."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import image, pattern, series


def conv(inner: int, outer: int, size: int = 1, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, size, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


class ResNeXt(nn.Module):
    """Bottleneck with a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.body = nn.Sequential(conv(6, 8), conv(8, 8, 3, groups=4), nn.Conv2d(8, 6, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.body(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """ShuffleNet v1 with the shuffle by views; `nn.ChannelShuffle` does the same."""

    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.squeeze = conv(8, 8, groups=2)
        self.shuffle = nn.ChannelShuffle(2) if layer else self.by_views
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.widen = nn.Conv2d(8, 8, 1, groups=2)
        self.head = nn.Conv2d(8, 3, 1)

    @staticmethod
    def by_views(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.widen(self.depthwise(self.shuffle(self.squeeze(x)))))


class ShuffleSplit(nn.Module):
    """ShuffleNet v2: half of the channels pass by, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.branch = conv(4, 4)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, dim=1)
        y = torch.cat([kept, self.branch(changed)], 1)
        b, c, h, w = y.shape
        return self.head(y.view(b, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2))


class Separable(nn.Module):
    """Depthwise with a multiplier, then pointwise; a PReLU per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.act = nn.PReLU(12)
        self.pointwise = nn.Conv2d(12, 5, 1)
        self.single = nn.PReLU()
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.stem(x)))
        return self.head(self.single(self.pointwise(x)))


class SqueezeExcite(nn.Module):
    """Channels weighed by linears over their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, _, _ = x.size()
        weights = F.adaptive_avg_pool2d(x, 1).view(b, c)
        weights = torch.sigmoid(self.up(F.relu(self.down(weights)))).view(b, c, 1, 1)
        return self.head(x * weights.expand_as(x))


class Inception(nn.Module):
    """Four branches side by side, a batch norm after the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.one = conv(6, 4)
        self.three = nn.Sequential(conv(6, 3), conv(3, 5, 3))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(6, 3))
        self.norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([self.one(x), self.three(x), self.pooled(x), x], dim=1)
        return self.head(F.adaptive_avg_pool2d(self.norm(y), 1).flatten(1))


class Dense(nn.Module):
    """DenseNet: every layer reads all before it; a transition halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(2))
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2))
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(self.transition(torch.cat(features, 1)))


class PaddedShortcut(nn.Module):
    """CIFAR ResNet: the shortcut into a wider stage is strided and padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.body = nn.Sequential(conv(4, 6, 3), nn.Conv2d(6, 8, 3, stride=2, padding=1))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(self.body(x) + short).mean((-2, -1)))


class PartialStages(nn.Module):
    """CSP: the input is split, one part goes through blocks, both meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.block = nn.Sequential(conv(4, 3), conv(3, 4, 3))
        self.join = conv(12, 6)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.stem(x).split(4, dim=1))
        parts.append(parts[-1] + self.block(parts[-1]))
        return self.head(self.join(torch.cat(parts, 1)))


class Temporal(nn.Module):
    """TCN: causal, dilated, cut at the end, weights normalised."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first = norm(nn.Conv1d(3, 6, 3, padding=4, dilation=2))
        self.second = norm(nn.Conv1d(6, 6, 3, padding=4, dilation=2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)[:, :, :-4])
        y = F.relu(self.second(y)[:, :, :-4] + y)
        return self.head(y[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions with residual and skip outputs of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 6, 1)
        self.gates = nn.ModuleList(nn.Conv1d(6, 10, 2, dilation=2**i) for i in range(2))
        self.outs = nn.ModuleList(nn.Conv1d(5, 10, 1) for _ in range(2))
        self.head = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total: Tensor | float = 0.0
        for i, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            residual, skip = out(torch.tanh(a) * torch.sigmoid(b)).split([6, 4], 1)
            x, total = x + residual, total + skip
        return self.head(F.relu(total))


class Volume(nn.Module):
    """Three dimensions, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 6, 2, stride=2)
        self.norm = nn.InstanceNorm3d(6, affine=True)
        self.up = nn.ConvTranspose3d(6, 4, 2, stride=2)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.norm(self.down(x))))))


class SelectiveKernel(nn.Module):
    """Two kernel sizes weighed against one another per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.three, self.five = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 5, padding=2)
        self.squeeze, self.excite = nn.Linear(6, 4), nn.Linear(4, 12)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.stack([self.three(x), self.five(x)], 1)
        scores = self.excite(F.relu(self.squeeze(both.sum(1).mean((2, 3)))))
        weights = scores.view(-1, 2, 6).softmax(1)
        return self.head((both * weights[..., None, None]).sum(1))


# The shortcut ties the groups of both grouped convolutions, and each has a part in every other.
_TIED_GROUPS = {"axis:stem.0/groups": "occurs twice in one product"}
TABLE: tuple[Entry, ...] = (
    pattern("resnext", ResNeXt, image(), reach={"channels": 3, "groups": 1}, fast=True),
    pattern(
        "shufflenet_views",
        lambda: ShuffleUnit(False),
        image(),
        reach={"channels": 2},
        stops=_TIED_GROUPS,
    ),
    pattern(
        "shufflenet_layer",
        lambda: ShuffleUnit(True),
        image(),
        reach={"channels": 2},
        stops=_TIED_GROUPS,
    ),
    pattern("shufflenet_split", ShuffleSplit, image(), reach={"channels": 2}),
    pattern("separable", Separable, image(), reach={"channels": 3}),
    pattern("squeeze_excite", SqueezeExcite, image(), reach={"channels": 1, "neurons": 1}, fast=True),
    pattern("inception", Inception, image(), reach={"channels": 5}),
    pattern("densenet", Dense, image(), reach={"channels": 4}),
    pattern("padded_shortcut", PaddedShortcut, image(), reach={"channels": 4}),
    pattern("partial_stages", PartialStages, image(), reach={"channels": 4}),
    pattern("temporal_convolution", Temporal, series(), reach={"channels": 1}),
    pattern("wavenet", WaveNet, series(), reach={"channels": 4}),
    pattern(
        "volume", Volume, lambda: torch.randn(3, 2, 4, 4, 4), reach={"channels": 2}
    ),
    pattern("selective_kernel", SelectiveKernel, image(), reach={"channels": 2, "neurons": 1}),
)
