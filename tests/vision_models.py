"""Convolutional networks of the usual families, a few thousand parameters each, in plain torch.

Structure follows the papers named on each class; sizes are chosen so that no two unrelated
dimensions agree by accident more often than they must.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand, and a shortcut (He et al. 2016, figure 5 right)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 2
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        out: Tensor = self.relu(y)
        return out


def shortcut(width_in: int, width: int, stride: int) -> nn.Module:
    """Identity where shapes agree, else a strided 1x1 convolution with batch norm."""
    if width_in == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """Stem with max pooling, three stages of two blocks, classifier. Input [N, 3, 16, 16]."""

    def __init__(self, block: type[BasicBlock | Bottleneck]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        width_in = 8
        for width, stride in ((8, 1), (8, 1), (12, 2), (12, 1), (20, 2), (20, 1)):
            blocks.append(block(width_in, width, stride))
            width_in = width
        self.layers = nn.Sequential(*blocks)
        self.fc = nn.Linear(width_in, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        x = functional.adaptive_avg_pool2d(self.layers(x), 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled map (Hu et al. 2018), with 1x1 convolutions."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1)
        self.expand = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.adaptive_avg_pool2d(x, 1)
        gate = self.expand(functional.silu(self.reduce(gate)))
        return x * torch.sigmoid(gate)


class MBConv(nn.Module):
    """Inverted residual: expand, depthwise, squeeze-excite, project (Tan and Le 2019)."""

    def __init__(self, width_in: int, width: int, ratio: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = width_in * ratio
        self.expand = nn.Sequential()
        if ratio != 1:
            self.expand = nn.Sequential(
                nn.Conv2d(width_in, inner, 1, bias=False),
                nn.BatchNorm2d(inner),
                nn.SiLU(),
            )
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
        )
        self.se = SqueezeExcite(inner, max(2, width_in // 2))
        self.project = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))
        self.residual = width_in == width and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """Stem, four MBConv blocks, head with dropout. Input [N, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        )
        self.blocks = nn.Sequential(
            MBConv(8, 6, 1, 3, 1),
            MBConv(6, 10, 3, 3, 2),
            MBConv(10, 10, 3, 5, 1),
            MBConv(10, 14, 3, 5, 1),
        )
        self.head = nn.Sequential(nn.Conv2d(14, 22, 1, bias=False), nn.BatchNorm2d(22), nn.SiLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(22, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        out: Tensor = self.classifier(x.mean((2, 3)))
        return out


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a channels-first map, written out in element-wise ops."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        out: Tensor = self.weight[:, None, None] * x + self.bias[:, None, None]
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm and two linears channels last, layer scale (Liu et al. 2022)."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, ratio * width)
        self.pwconv2 = nn.Linear(ratio * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(functional.gelu(self.pwconv1(self.norm(y))))
        out: Tensor = x + (self.gamma * y).permute(0, 3, 1, 2)
        return out


class ConvNeXt(nn.Module):
    """Patchify stem, two stages of two blocks with a strided step between. Input [N, 3, 16, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), ChannelNorm(8))
        self.stage1 = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.down = nn.Sequential(ChannelNorm(8), nn.Conv2d(8, 14, 2, 2))
        self.stage2 = nn.Sequential(ConvNeXtBlock(14), ConvNeXtBlock(14))
        self.norm = nn.LayerNorm(14, eps=1e-6)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        out: Tensor = self.head(self.norm(x.mean((-2, -1))))
        return out


def double_conv(width_in: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions, each followed by batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Encoder, bottom, decoder, with skips by concatenation (Ronneberger et al. 2015).

    `transposed` chooses how the decoder doubles the resolution: a strided transposed convolution,
    or bilinear interpolation followed by a 1x1 convolution. [N, 3, 16, 16] to [N, 2, 16, 16].
    """

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.enc1 = double_conv(3, 6)
        self.enc2 = double_conv(6, 10)
        self.bottom = double_conv(10, 18)
        self.up2 = self._up(18, 10, transposed)
        self.dec2 = double_conv(20, 10)
        self.up1 = self._up(10, 6, transposed)
        self.dec1 = double_conv(12, 6)
        self.head = nn.Conv2d(6, 2, 1)
        self.transposed = transposed

    @staticmethod
    def _up(width_in: int, width: int, transposed: bool) -> nn.Module:
        if transposed:
            return nn.ConvTranspose2d(width_in, width, 2, 2)
        return nn.Conv2d(width_in, width, 1)

    def _upsample(self, up: nn.Module, x: Tensor) -> Tensor:
        if not self.transposed:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = up(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.enc1(x)
        skip2 = self.enc2(functional.max_pool2d(skip1, 2))
        x = self.bottom(functional.max_pool2d(skip2, 2))
        x = self.dec2(torch.cat([skip2, self._upsample(self.up2, x)], dim=1))
        x = self.dec1(torch.cat([skip1, self._upsample(self.up1, x)], dim=1))
        out: Tensor = self.head(x)
        return out
