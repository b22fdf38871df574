"""Dense prediction: U-Net, transposed decoders, pyramids, dilated pools, non-local blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import image, pattern


class UNet(nn.Module):
    """Two levels with skip connections and group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.middle = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.norm(self.down(x)))
        return self.last(torch.cat([skip, self.up(F.silu(self.middle(skip)))], 1))


class Generator(nn.Module):
    """DCGAN: a vector becomes an image by transposed convolutions, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 8 * 2 * 2)
        self.one = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.ConvTranspose2d(6, 3, 2, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        x = self.fc(z).view(-1, 8, 2, 2)
        return torch.tanh(self.two(F.relu(self.norm(self.one(x)))))


class AutoEncoder(nn.Module):
    """Convolutions, a flat bottleneck, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.narrow = nn.Linear(64, 5)
        self.back = nn.Linear(5, 64)
        self.dec = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.narrow(F.relu(self.enc(x)).flatten(1)))
        return self.dec(F.relu(self.back(code)).unflatten(1, (4, 4, 4)))


class Pyramid(nn.Module):
    """FPN: lateral convolutions, nearest upsampling, sums, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 4, 3, padding=1)
        self.high = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.lateral = nn.ModuleList([nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1)])
        self.out = nn.ModuleList(nn.Conv2d(5, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        low = F.relu(self.low(x))
        high = F.relu(self.high(low))
        top = self.lateral[1](high)
        bottom = self.lateral[0](low) + F.interpolate(top, size=low.shape[-2:], mode="nearest")
        return [self.out[0](bottom), self.out[1](top)]


class DilatedPools(nn.Module):
    """ASPP: dilated branches and an image-wide one, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=d, dilation=d) for d in (1, 2))
        self.wide = nn.Conv2d(6, 4, 1)
        self.join = nn.Conv2d(12, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        wide = F.interpolate(
            self.wide(x.mean((2, 3), keepdim=True)),
            size=x.shape[2:],
            mode="bilinear",
            align_corners=False,
        )
        y = torch.cat([*(b(x) for b in self.branches), wide], dim=1)
        return self.head(F.relu(self.norm(self.join(y))))


class NonLocal(nn.Module):
    """Every place attends to every place, by 1 x 1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.theta, self.phi, self.g = (nn.Conv2d(6, 4, 1) for _ in range(3))
        self.back = nn.Conv2d(4, 6, 1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        theta = self.theta(x).view(b, 4, -1).permute(0, 2, 1)
        phi, g = self.phi(x).view(b, 4, -1), self.g(x).view(b, 4, -1).permute(0, 2, 1)
        y = torch.bmm(torch.softmax(torch.bmm(theta, phi), -1), g)
        return self.head(x + self.back(y.permute(0, 2, 1).reshape(b, 4, h, w)))


class SuperResolution(nn.Module):
    """ESPCN: pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 20, 1))
        self.shuffle = nn.PixelShuffle(2)
        self.head = nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shuffle(self.body(x)))


class SpaceToDepth(nn.Module):
    """Focus and pixel unshuffle in place of strides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.mid = nn.Conv2d(16, 4, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.mid(F.pixel_unshuffle(self.stem(x), 2)))
        focus = [y[..., i::2, j::2] for i in range(2) for j in range(2)]
        return self.head(torch.cat(focus, 1))


class Overlapping(nn.Module):
    """Patches by unfold, mixed by a linear, laid back by fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.mix = nn.Linear(16, 12)
        self.back = nn.Linear(12, 16)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.stem(x), 2, stride=2).transpose(1, 2)
        mixed = self.back(F.gelu(self.mix(patches))).transpose(1, 2)
        return self.head(F.fold(mixed, (8, 8), 2, stride=2))


class Warped(nn.Module):
    """Spatial transformer: features predict an affine map that they are sampled by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.locate = nn.Linear(4, 5)
        self.theta = nn.Linear(5, 6)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        theta = self.theta(F.relu(self.locate(x.mean((2, 3))))).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 2, 8, 8], align_corners=False)
        return self.head(F.grid_sample(x, grid, align_corners=False))


class SegNet(nn.Module):
    """Pooling that remembers its places, and unpooling there."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.down(x), 2, return_indices=True)
        return self.up(F.max_unpool2d(F.relu(y), places, 2))


TABLE: tuple[Entry, ...] = (
    pattern("unet_group_norm", UNet, image(), reach={"groups": 1, "embedding": 1, "channels": 2}),
    pattern("generator", Generator, lambda: torch.randn(3, 4), reach={"groups": 1, "neurons": 1, "channels": 1}),
    pattern("autoencoder", AutoEncoder, image(), reach={"channels": 1, "neurons": 1}),
    pattern("feature_pyramid", Pyramid, image(), reach={"channels": 3}, fast=True),
    pattern("dilated_pools", DilatedPools, image(), reach={"channels": 5}),
    pattern("non_local", NonLocal, image(4), reach={"channels": 1, "head-size": 2}),
    pattern("super_resolution", SuperResolution, image(), reach={"channels": 2}),
    pattern("space_to_depth", SpaceToDepth, image(), reach={"channels": 2}),
    pattern("unfold_fold", Overlapping, image(), reach={"channels": 1, "neurons": 2}),
    pattern(
        "spatial_transformer",
        Warped,
        image(),
        reach={"channels": 1, "neurons": 1},
        onnx="no affine grids",
    ),
    pattern("segnet", SegNet, image(), reach={"channels": 1}, onnx="no unpooling"),
)
