"""Cases of `tests.ir.test_rules`: reductions, pooling, contracts and the unknown."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, between, image, linears, rows, tokens

CASES: dict[str, Case] = {
    # reductions
    "sum": Case(
        lambda m, x: m.l0(x).sum(-1) + m.l1(x).sum(-1),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        rows(),
        {"l0/neurons": 6, "l1/neurons": 5},
    ),
    "mean": Case(
        lambda m, x: m.l1(m.l0(x)) + m.l0(x).mean(-1, keepdim=True),
        linears(4, 6, 2),
        rows(),
        {"l0/embedding": 6},
        lossy=("l0/embedding",),
    ),
    "mean of all": Case(
        lambda m, x: m.l0(x).mean(),
        linears(4, 6),
        rows(),
        {"l0/embedding": 6},
        lossy=("l0/embedding",),
    ),
    "max": Case(
        lambda m, x: m.l1(m.l0(x)) + m.l0(x).amax(-1, keepdim=True) - m.l0(x).min(1)[0][:, None],
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
        lossy=("l0/neurons",),
    ),
    "places of maxima": Case(
        lambda m, x: sum(m.l0(x).max(-1)),
        linears(4, 6),
        rows(),
        {},
        {"l0/neurons": "its positions are read by aten.add.Tensor"},
        ("l0/neurons",),
    ),
    "logsumexp and product": Case(
        lambda m, x: m.l0(x).logsumexp(-1) * m.l1(x).prod(1),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        rows(),
        {"l0/neurons": 6, "l1/neurons": 5},
        lossy=("l0/neurons", "l1/neurons"),
    ),
    "moments": Case(
        lambda m, x: (
            m.l0(x).var(-1, unbiased=False, keepdim=True)
            * torch.add(*torch.var_mean(m.l1(x), 1, correction=0))[:, None]
        ),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        rows(),
        {"l0/embedding": 6, "l1/embedding": 5},
        lossy=("l0/embedding", "l1/embedding"),
    ),
    "norms": Case(
        lambda m, x: (
            m.l1(F.normalize(m.l0(x), dim=-1)) * torch.linalg.norm(m.l0(x), 3, dim=1)[:, None]
        ),
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
    ),
    "matrix norm": Case(
        lambda m, x: torch.linalg.matrix_norm(m.l0(x)) + torch.linalg.matrix_norm(m.l1(x), 1),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        tokens(),
        {"l0/neurons": 6},
        {"l1/neurons": "reduced by aten.linalg_matrix_norm.default"},
    ),
    "argmax": Case(
        lambda m, x: m.l0(x).argmax(-1) + m.l1(x).count_nonzero(1),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5)},
        rows(),
        {},
        {
            "l0/neurons": "its positions are read by aten.add.Tensor",
            "l1/neurons": "reduced by aten.count_nonzero.default",
        },
        ("l0/neurons",),
    ),
    "max of another dim": Case(
        lambda m, x: m.l1(m.l0(x).max(1).values), linears(4, 6, 2), tokens(), {"l0/neurons": 6}
    ),
    "softmax": Case(
        between(lambda h: h.softmax(-1) + h.log_softmax(1)),
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
        lossy=("l0/neurons",),
    ),
    "softmax of another dim": Case(
        lambda m, x: m.l1(m.l0(x).softmax(1)), linears(4, 6, 2), tokens(), {"l0/neurons": 6}
    ),
    "cumsum": Case(between(lambda h: h.cumsum(-1)), linears(4, 6, 2), rows(), {"l0/neurons": 6}),
    "cumprod": Case(
        between(lambda h: h.cumprod(-1)),
        linears(4, 6, 2),
        rows(),
        {},
        {"l0/neurons": "aten.cumprod.default runs along it"},
    ),
    "flip": Case(
        between(lambda h: h.flip(-1)),
        linears(4, 6, 2),
        rows(),
        {},
        {"l0/neurons": "positions move (roll, flip)"},
    ),
    "roll": Case(
        lambda m, x: m.b(torch.roll(m.a(x), (1, 1), (2, 3))),
        lambda: {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 2, 1)},
        image(),
        {"a/channels": 6},
    ),
    # pooling
    "max pool": Case(
        lambda m, x: m.b(F.max_pool2d(m.a(x), 2)),
        lambda: {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 2, 1)},
        image(),
        {"a/channels": 6},
    ),
    "average pool": Case(
        lambda m, x: m.b(F.avg_pool1d(m.a(x), 2)),
        lambda: {"a": nn.Conv1d(2, 6, 1), "b": nn.Conv1d(6, 2, 1)},
        lambda: torch.randn(3, 2, 8),
        {"a/channels": 6},
    ),
    "interpolate": Case(
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2.0, mode="bilinear")),
        lambda: {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 2, 1)},
        image(),
        {"a/channels": 6},
    ),
    # contracts and the unknown
    "input and output": Case(lambda m, x: m.l0(x), linears(4, 6), rows(), {}),
    "op without a rule": Case(
        lambda m, x: m.l1(torch.linalg.matrix_power(m.l0(x).mT @ m.l0(x), 2)),
        linears(4, 6, 2),
        tokens(),
        {},
        {
            "l0/head-size": "no axis rule for aten.linalg_matrix_power.default",
            "l1/units": "no axis rule for aten.linalg_matrix_power.default",
        },
    ),
}
