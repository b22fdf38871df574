"""Cases of `tests.ir.test_rules`: contraction, norms, element-wise."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, between, image, linears, parameter, rows, tokens

CASES: dict[str, Case] = {
    # contraction
    "linear": Case(between(torch.relu), linears(4, 6, 2), rows(), {"l0/neurons": 6}),
    "linear without bias": Case(
        lambda m, x: m.b(m.a(x)),
        lambda: {"a": nn.Linear(4, 6, bias=False), "b": nn.Linear(6, 2, bias=False)},
        rows(),
        {"a/neurons": 6},
    ),
    "residual": Case(
        lambda m, x: m.l2(m.l0(x) + m.l1(x)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6), "l2": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 6},
    ),
    "matmul": Case(
        lambda m, x: torch.relu(x @ m.w) @ m.v,
        lambda: {"w": parameter(4, 6), "v": parameter(6, 2)},
        rows(),
        {"root/neurons": 6},
    ),
    "addmm": Case(
        lambda m, x: torch.addmm(m.c, torch.addmm(m.b, x, m.w), m.v),
        lambda: {"w": parameter(4, 6), "b": parameter(6), "v": parameter(6, 2), "c": parameter(2)},
        rows(),
        {"root/neurons": 6},
    ),
    "einsum": Case(
        lambda m, x: torch.einsum("bij,jo->bio", torch.einsum("bti,hij->bhj", x, m.w), m.v),
        lambda: {"w": parameter(5, 4, 6), "v": parameter(6, 2)},
        tokens(),
        {"root/units.3": 6},
    ),
    "bmm": Case(
        lambda m, x: m.o(torch.bmm(m.q(x), m.k(x).transpose(1, 2))),
        lambda: {"q": nn.Linear(4, 6), "k": nn.Linear(4, 6), "o": nn.Linear(5, 2)},
        tokens(),
        {"q/head-size": 6},
    ),
    "conv": Case(
        lambda m, x: m.b(torch.relu(m.a(x))),
        lambda: {"a": nn.Conv2d(2, 6, 3, padding=1), "b": nn.Conv2d(6, 3, 1)},
        image(),
        {"a/channels": 6},
    ),
    "conv1d": Case(
        lambda m, x: m.b(m.a(x)),
        lambda: {"a": nn.Conv1d(4, 6, 3, padding="same"), "b": nn.Conv1d(6, 3, 2, stride=2)},
        lambda: torch.randn(3, 4, 8),
        {"a/channels": 6},
    ),
    "conv3d": Case(
        lambda m, x: m.b(m.a(x)),
        lambda: {"a": nn.Conv3d(2, 4, 2), "b": nn.Conv3d(4, 3, 1)},
        lambda: torch.randn(3, 2, 3, 3, 3),
        {"a/channels": 4},
    ),
    "conv of single places": Case(
        lambda m, x: m.l1(m.a(m.l0(x))).mean(1),
        lambda: {"l0": nn.Linear(4, 6), "a": nn.Conv1d(5, 3, 1), "l1": nn.Linear(6, 2)},
        tokens(),
        {"l0/neurons": 6, "a/embedding": 3},
        lossy=("a/embedding",),
    ),
    "grouped conv": Case(
        lambda m, x: m.b(m.g(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 8, 1),
            "g": nn.Conv2d(8, 12, 3, groups=4),
            "b": nn.Conv2d(12, 3, 1),
        },
        image(),
        {"a/groups": 4, "a/channels": 2, "g/channels": 3},
    ),
    "depthwise conv": Case(
        lambda m, x: m.b(m.g(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 6, 1),
            "g": nn.Conv2d(6, 6, 3, groups=6),
            "b": nn.Conv2d(6, 3, 1),
        },
        image(),
        {"a/channels": 6},
    ),
    "depthwise multiplier": Case(
        lambda m, x: m.b(m.g(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 6, 1),
            "g": nn.Conv2d(6, 12, 3, groups=6),
            "b": nn.Conv2d(12, 3, 1),
        },
        image(),
        {"a/channels": 6, "g/channels": 2},
    ),
    "conv transpose": Case(
        lambda m, x: m.b(m.t(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 6, 1),
            "t": nn.ConvTranspose2d(6, 4, 2, stride=2),
            "b": nn.Conv2d(4, 3, 1),
        },
        image(),
        {"a/channels": 6, "t/channels": 4},
    ),
    "grouped conv transpose": Case(
        lambda m, x: m.b(m.t(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 6, 1),
            "t": nn.ConvTranspose2d(6, 4, 2, groups=2),
            "b": nn.Conv2d(4, 3, 1),
        },
        image(),
        {"a/groups": 2, "a/channels": 3, "t/channels": 2},
    ),
    "depthwise conv transpose": Case(
        lambda m, x: m.b(m.t(m.a(x))),
        lambda: {
            "a": nn.Conv1d(2, 6, 1),
            "t": nn.ConvTranspose1d(6, 6, 2, groups=6),
            "b": nn.Conv1d(6, 3, 1),
        },
        lambda: torch.randn(3, 2, 4),
        {"a/channels": 6},
    ),
    # norms
    "batch norm": Case(
        lambda m, x: m.b(torch.relu(m.n(m.a(x)))),
        lambda: {
            "a": nn.Conv2d(2, 6, 3, bias=False),
            "n": nn.BatchNorm2d(6),
            "b": nn.Conv2d(6, 3, 1),
        },
        image(),
        {"a/channels": 6},
    ),
    "instance norm": Case(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {
            "a": nn.Conv2d(2, 6, 3),
            "n": nn.InstanceNorm2d(6, affine=True),
            "b": nn.Conv2d(6, 3, 1),
        },
        image(),
        {"a/channels": 6},
    ),
    "layer norm": Case(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": nn.Linear(4, 6), "n": nn.LayerNorm(6), "b": nn.Linear(6, 2)},
        rows(),
        {"a/embedding": 6},
        lossy=("a/embedding",),
    ),
    "rms norm": Case(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": nn.Linear(4, 6), "n": nn.RMSNorm(6), "b": nn.Linear(6, 2)},
        rows(),
        {"a/embedding": 6},
        lossy=("a/embedding",),
    ),
    "group norm": Case(
        lambda m, x: m.b(m.n(m.a(x))),
        lambda: {"a": nn.Conv2d(2, 8, 3), "n": nn.GroupNorm(4, 8), "b": nn.Conv2d(8, 3, 1)},
        image(),
        {"a/groups": 4, "a/embedding": 2},
        lossy=("a/embedding",),
    ),
    # element-wise
    "gate": Case(
        lambda m, x: m.l2(F.silu(m.l0(x)) * m.l1(x)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6), "l2": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 6},
    ),
    "glu": Case(
        lambda m, x: m.l1(F.glu(m.l0(x))),
        lambda: {"l0": nn.Linear(4, 12), "l1": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 6},
    ),
    "prelu": Case(
        lambda m, x: m.b(m.p(m.a(x))),
        lambda: {"a": nn.Conv2d(2, 6, 3), "p": nn.PReLU(6), "b": nn.Conv2d(6, 3, 1)},
        image(),
        {"a/channels": 6},
    ),
    "in place": Case(
        between(lambda h: F.relu_(h).add_(1.0)), linears(4, 6, 2), rows(), {"l0/neurons": 6}
    ),
    "layer scale": Case(
        lambda m, x: m.l1(m.l0(x) * m.s),
        linears(4, 6, 2, s=lambda: parameter(6)),
        rows(),
        {"l0/neurons": 6},
    ),
    "masked fill": Case(
        between(lambda h: h.masked_fill(h > 0, 0.5)), linears(4, 6, 2), rows(), {"l0/neurons": 6}
    ),
}
