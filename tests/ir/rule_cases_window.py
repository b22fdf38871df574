"""Cases of `tests.ir.test_rules`: windows, shuffles, pools, complex numbers, transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, Layers, image, linears, rows, tokens


def _convs(middle: int, wide: int | None = None) -> Layers:
    return lambda: {"a": nn.Conv2d(2, middle, 1), "b": nn.Conv2d(wide or middle, 2, 1)}


def _rotated(m: Any, x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(m.l0(x).unflatten(-1, (3, 2)))
    turned = pairs * torch.polar(torch.ones_like(m.f), m.f)
    result: Tensor = m.l1(torch.view_as_real(turned).flatten(2))
    return result


CASES: dict[str, Case] = {
    "unfold of a tensor": Case(
        lambda m, x: m.l1(m.l0(x).unfold(1, 2, 1).sum(-1)),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
    ),
    "unfold and fold": Case(
        lambda m, x: m.b(F.fold(F.unfold(m.a(x), 2, stride=2), (6, 6), 2, stride=2)),
        _convs(4),
        image(),
        {"a/channels": 4},
    ),
    "unfold to channels": Case(
        lambda m, x: m.b(F.unfold(m.a(x), 2)),
        lambda: {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv1d(16, 2, 1)},
        image(),
        {"a/channels": 4},
        {"b/units": "place within a window"},
    ),
    "pixel unshuffle": Case(
        lambda m, x: m.b(F.pixel_unshuffle(m.a(x), 2)),
        _convs(3, 12),
        image(),
        {"a/channels": 3},
        {"b/units": "pixel unshuffle"},
    ),
    "channel shuffle": Case(
        lambda m, x: m.b(F.channel_shuffle(m.a(x), 2)),
        _convs(6),
        image(),
        {"a/channels": 2, "a/channels.2": 3},
    ),
    "pools": Case(
        lambda m, x: m.b(F.adaptive_max_pool2d(F.lp_pool2d(m.a(x), 2, 2), 2)),
        _convs(6),
        image(),
        {"a/channels": 6},
    ),
    "unpool": Case(
        lambda m, x: m.b(F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), [2, 2])),
        _convs(6),
        image(),
        {"a/channels": 6},
    ),
    "grid sample": Case(
        lambda m, x: m.b(
            F.grid_sample(
                m.a(x),
                F.affine_grid(m.t.expand(x.shape[0], 2, 3), list(x.shape), False),
                align_corners=False,
            )
        ),
        lambda: {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 2, 1), "t": torch.eye(2, 3)[None]},
        image(),
        {"a/channels": 6},
        {"root/units": "an affine map", "root/units.2": "an affine map"},
    ),
    "rotation of complex pairs": Case(
        _rotated,
        linears(4, 6, 2, f=lambda: torch.rand(3)),
        tokens(),
        {"l0/neurons": 3},
        {"l0/neurons.2": "real and imaginary part", "l1/units": "real and imaginary part"},
    ),
    "real and imaginary parts": Case(
        lambda m, x: m.l1(
            (lambda c: c.real * c.imag + (c * c.conj()).abs())(torch.complex(m.l0(x), m.l2(x)))
        ),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 6)),
        rows(),
        {"l0/neurons": 6},
    ),
    "transform of another dim": Case(
        lambda m, x: m.l1(torch.fft.fft(m.l0(x), dim=1).real),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
    ),
    "transforms": Case(
        lambda m, x: torch.fft.fft2(m.l0(x)).real.sum() + torch.fft.rfft(m.l1(x)).abs().sum(),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        tokens(),
        {},
        {
            "l0/neurons": "aten.fft_fft2.default mixes it",
            "l1/neurons": "aten.fft_rfft.default mixes it",
        },
    ),
    "turned around": Case(
        lambda m, x: m.b(m.a(x).rot90(1, (2, 3)).fliplr()),
        _convs(6),
        image(),
        {},
        {"a/channels": "positions move (roll, flip)"},
    ),
    "grids": Case(
        lambda m, x: sum(torch.meshgrid(m.p, m.q, indexing="xy")) @ m.l0(x).T,
        lambda: {
            "l0": nn.Linear(4, 6),
            "p": nn.Parameter(torch.rand(6)),
            "q": nn.Parameter(torch.rand(3)),
        },
        rows(),
        {"l0/neurons": 6},
    ),
}
