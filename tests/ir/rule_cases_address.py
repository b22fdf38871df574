"""Cases of `tests.ir.test_rules`: data that addresses data, and ops that stay opaque."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, between, linears, parameter, rows, tokens


def _written(h: Tensor, places: Any) -> Tensor:
    h[places] = 0.5
    return h


CASES: dict[str, Case] = {
    "gather beside": Case(
        lambda m, x: m.l1(m.l0(x).gather(1, m.l0(x).argsort(1)[:, :2])),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
    ),
    "gather with an expanded index": Case(
        lambda m, x: m.l1(
            m.l0(x).gather(1, m.l2(x)[:, :1].argmax(-1, keepdim=True).expand(-1, -1, 6))
        ),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 5)),
        tokens(),
        {"l0/neurons": 6},
        lossy=("l2/neurons",),
    ),
    "take along a dim": Case(
        between(lambda h: torch.take_along_dim(h, h.argsort(1), 1)),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
    ),
    "sort": Case(
        lambda m, x: (
            m.l1(m.l0(x).sort(1)[0] + m.l0(x).median(1, keepdim=True)[0]) + m.l2(x).sort(2)[0]
        ),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 2)),
        tokens(),
        {"l0/neurons": 6},
        {"l1/neurons": "aten.sort.default runs along it"},
    ),
    "topk": Case(
        lambda m, x: m.l1(m.l0(x).topk(2, 1)[0]) + m.l2(x).topk(2, -1)[0].sum(),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 5)),
        tokens(),
        {"l0/neurons": 6, "l2/experts": 5},
        lossy=("l2/experts",),
    ),
    "scatter": Case(
        lambda m, x: m.l1(
            torch.zeros_like(m.l0(x)).scatter(1, m.l0(x).argsort(1), m.l0(x))
            + m.l0(x).scatter_add(1, m.l0(x).argsort(1), m.l0(x))
        ),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
    ),
    "scatter to units": Case(
        between(lambda h: torch.zeros_like(h).scatter(-1, h.topk(2, -1)[1], 1.0)),
        linears(4, 6, 2),
        rows(),
        {"l0/experts": 6},
        lossy=("l0/experts",),
    ),
    "index add, copy and fill": Case(
        lambda m, x: m.l1(
            m.l0(x)
            .index_add(1, m.i, m.l0(x)[:, :2])
            .index_copy(1, m.i, m.l0(x)[:, :2])
            .index_fill(1, m.i[:1], 0.5)
        ),
        linears(4, 6, 2, i=lambda: torch.tensor([0, 2])),
        tokens(),
        {"l0/neurons": 6},
    ),
    "index put": Case(
        lambda m, x: m.l1(m.l0(x).index_put((m.i,), m.l2(x[:2]))),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 6), i=lambda: torch.tensor([0, 2])),
        rows(),
        {"l0/neurons": 6},
        {"root/units": "addressed by data (index_put)"},
    ),
    "index put under a mask": Case(
        between(lambda h: _written(h.clone(), h > 0)),
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
    ),
    "index put along units": Case(
        lambda m, x: m.l1(_written(m.l0(x).clone(), (slice(None), m.i))),
        linears(4, 6, 2, i=lambda: torch.tensor([0, 2])),
        rows(),
        {},
        {
            "l0/neurons": "addressed by data (index_put)",
            "root/units": "addressed by data (index_put)",
        },
    ),
    "index of constant neighbours": Case(
        lambda m, x: m.l1(m.l0(x)[:, [-3, -2]]),
        lambda: {"l0": nn.Linear(4, 7), "l1": nn.Linear(2, 2)},
        rows(),
        {"l0/neurons": 4, "l0/neurons.2": 2},
    ),
    "one hot": Case(
        lambda m, x: m.l1(F.one_hot(m.l0(x).argmax(-1), 6).to(x.dtype)),
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
        lossy=("l0/neurons",),
    ),
    "bucketize and searchsorted": Case(
        lambda m, x: m.l1(
            torch.bucketize(m.l0(x), m.t).to(x.dtype) + torch.searchsorted(m.t, m.l0(x)) + m.l0(x)
        ),
        linears(4, 6, 2, t=lambda: torch.linspace(-1, 1, 3)),
        rows(),
        {"l0/neurons": 6},
        {"root/units": "addressed by data (bucketize)"},
    ),
    "differences": Case(
        lambda m, x: m.l1(m.l0(x).diff(dim=1)) + torch.trapezoid(m.l0(x), dim=-1)[:, 1:, None],
        linears(4, 6, 2),
        tokens(),
        {},
        {"l0/neurons": "aten.trapezoid.dx runs along it"},
    ),
    "embedding bag": Case(
        lambda m, x: m.l0(m.e((x > 0).long())),
        lambda: {"e": nn.EmbeddingBag(9, 6), "l0": nn.Linear(6, 2)},
        rows(),
        {"e/embedding": 6},
        {"e/vocabulary": "rows are addressed by data (embedding)"},
    ),
    "quantile": Case(
        lambda m, x: m.l0(x).quantile(0.5, dim=-1),
        linears(4, 6),
        rows(),
        {},
        {"l0/neurons": "every unit counts for the result"},
    ),
    "as strided": Case(
        lambda m, x: m.l1(m.l0(x).as_strided((3, 6), (6, 1))),
        linears(4, 6, 2),
        rows(),
        {},
        {"l0/neurons": "addressed by strides", "l1/units": "addressed by strides"},
    ),
    "loss": Case(
        lambda m, x: F.mse_loss(m.l0(x), torch.zeros_like(m.l0(x))),
        linears(4, 6),
        rows(),
        {},
        {"l0/neurons": "a loss is taken over it"},
    ),
    # positions along a dim of the model itself
    "experts that a router chose": Case(
        lambda m, x: m.l1((m.up[m.l0(x).topk(2, -1)[1]] @ x[:, None, :, None])[..., 0].sum(1)),
        linears(4, 5, l1=lambda: nn.Linear(6, 2), up=lambda: parameter(5, 6, 4)),
        rows(),
        {"l0/experts": 5, "root/neurons": 6},
        lossy=("l0/experts",),
    ),
    "the best expert": Case(
        lambda m, x: m.l1(
            (m.up.index_select(0, m.l0(x).argmax(-1)) @ x[..., None])[..., 0]
            + m.down[m.l0(x).max(-1)[1]]
        ),
        linears(
            4,
            5,
            l1=lambda: nn.Linear(6, 2),
            up=lambda: parameter(5, 6, 4),
            down=lambda: parameter(5, 6),
        ),
        rows(),
        {"l0/experts": 5, "root/units": 6},
        lossy=("l0/experts",),
    ),
    "the nearest code": Case(
        lambda m, x: m.l1(
            F.embedding((m.codes.square().sum(1) - 2 * m.l0(x) @ m.codes.t()).argmin(1), m.codes)
        ),
        linears(4, 5, l1=lambda: nn.Linear(5, 2), codes=lambda: parameter(7, 5)),
        rows(),
        {"root/vocabulary": 7, "l0/embedding": 5},
        lossy=("root/vocabulary",),
    ),
    "gates of the chosen, scattered and one-hot": Case(
        lambda m, x: m.l1(
            torch.zeros_like(m.l0(x)).scatter(1, m.l0(x).topk(2)[1], m.l0(x).topk(2)[0])
            + F.one_hot(m.l0(x).argmax(-1), 5)
            + m.l0(x).softmax(-1).gather(1, m.l0(x).topk(2)[1]).sum()
        ),
        linears(4, 5, 2),
        rows(),
        {"l0/experts": 5},
        lossy=("l0/experts",),
    ),
    "positions that are computed with": Case(
        lambda m, x: m.l1(m.l0(x)) + m.l0(x).argmax(-1, keepdim=True),
        linears(4, 5, 2),
        rows(),
        {},
        {"l0/neurons": "its positions are read by aten.add.Tensor"},
        ("l0/neurons",),
    ),
    "positions as an output": Case(
        lambda m, x: (m.l1(m.l0(x)), m.l0(x).argmax(-1)),
        linears(4, 5, 2),
        rows(),
        {},
        lossy=("l0/neurons",),
    ),
    "all that there are, selected": Case(
        lambda m, x: m.l1(m.l0(x).topk(5)[0]),
        linears(4, 5, l1=lambda: nn.Linear(5, 2)),
        rows(),
        {},
        {"l0/experts": "", "l1/units": "ranks of topk"},
        ("l0/experts",),
    ),
}
