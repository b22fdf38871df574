"""Cases of `tests.ir.test_rules`: products, distances, einsum, diagonals."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, linears, parameter, rows, tokens

CASES: dict[str, Case] = {
    "einsum with an ellipsis": Case(
        lambda m, x: torch.einsum("...i,oi->...o", torch.einsum("...i,oi", x, m.w), m.v),
        lambda: {"w": parameter(6, 4), "v": parameter(2, 6)},
        tokens(),
        {"root/units": 6},
    ),
    "einsum without an output": Case(
        lambda m, x: torch.einsum("bj,jo", torch.einsum("bi,hi", x, m.w), m.v),
        lambda: {"w": parameter(6, 4), "v": parameter(6, 2)},
        rows(),
        {"root/units": 6},
    ),
    "einsum over a broadcast letter": Case(
        lambda m, x: torch.einsum("bij,bij->bi", m.l0(x)[:, None], m.l1(x)[:, None] * m.s),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6), "s": parameter(1, 3, 6)},
        rows(),
        {"l0/neurons": 6},
    ),
    "chain of products": Case(
        lambda m, x: torch.linalg.multi_dot([x, m.w, m.v]),
        lambda: {"w": parameter(4, 6), "v": parameter(6, 2)},
        rows(),
        {"root/units.2": 6},
    ),
    "addbmm, addmv, addr": Case(
        lambda m, x: (
            torch.addbmm(m.b, m.l0(x).transpose(1, 2), m.l1(x)) @ m.c
            + torch.addr(m.d, m.e, m.e)[0, 0]
            + torch.addmv(m.d[0], m.d, m.e)[0]
        ),
        lambda: {
            "l0": nn.Linear(4, 3),
            "l1": nn.Linear(4, 6),
            "b": parameter(3, 6),
            "c": parameter(6, 2),
            "d": parameter(2, 2),
            "e": parameter(2),
        },
        tokens(),
        {"l1/head-size": 6},
    ),
    "baddbmm": Case(
        lambda m, x: (
            torch.baddbmm(
                m.l2(x), torch.bmm(x, m.l0(x).transpose(1, 2)), m.l1(x), beta=0.5, alpha=2.0
            )
            @ m.c
        ),
        lambda: {
            "l0": nn.Linear(4, 4),
            "l1": nn.Linear(4, 6),
            "l2": nn.Linear(4, 6),
            "c": parameter(6, 2),
        },
        tokens(),
        {"l1/head-size": 6},
    ),
    "outer and inner": Case(
        lambda m, x: m.l0(x) * torch.inner(torch.outer(m.a, m.b), m.c),
        lambda: {"l0": nn.Linear(4, 3), "a": parameter(3), "b": parameter(6), "c": parameter(6)},
        rows(),
        {"root/units": 6},
    ),
    "tensordot": Case(
        lambda m, x: torch.tensordot(torch.tensordot(x, m.w, ([2], [1])), m.v, 1),
        lambda: {"w": parameter(6, 4), "v": parameter(6, 2)},
        tokens(),
        {"root/units": 6},
    ),
    "vecdot": Case(
        lambda m, x: torch.linalg.vecdot(m.l0(x), m.l1(x)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6)},
        tokens(),
        {"l0/neurons": 6},
    ),
    "kron": Case(
        lambda m, x: m.l1(torch.kron(m.l0(x)[0], m.w)),
        lambda: {"l0": nn.Linear(4, 3), "w": parameter(2), "l1": nn.Linear(6, 2)},
        rows(),
        {"root/units": 2, "l0/neurons": 3},
    ),
    "bilinear": Case(
        lambda m, x: m.o(m.b(m.l0(x), m.l1(x))),
        lambda: {
            "l0": nn.Linear(4, 3),
            "l1": nn.Linear(4, 5),
            "b": nn.Bilinear(3, 5, 6),
            "o": nn.Linear(6, 2),
        },
        rows(),
        {"l0/neurons": 3, "l1/neurons": 5, "b/neurons": 6},
    ),
    "distances": Case(
        lambda m, x: (
            torch.cdist(m.l0(x), m.p) + F.cosine_similarity(m.l0(x), m.p, dim=-1)[..., None]
        ),
        lambda: {"l0": nn.Linear(4, 6), "p": parameter(1, 5, 6)},
        tokens(),
        {"l0/neurons": 6},
    ),
    "pairwise distance": Case(
        lambda m, x: F.pairwise_distance(m.l0(x), m.l1(x)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6)},
        rows(),
        {},
        {"l0/neurons": "pairwise_distance adds a constant to every unit"},
    ),
    "cross product": Case(
        lambda m, x: torch.linalg.cross(m.l0(x), m.l0(x).roll(1, -1)),
        lambda: {"l0": nn.Linear(4, 3)},
        rows(),
        {},
        {"l0/neurons": "positions move (roll, flip)"},
    ),
    "weight norm": Case(
        lambda m, x: m.l1(m.l0(x)),
        lambda: {
            "l0": nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
            "l1": nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)),
        },
        rows(),
        {"l0/neurons": 6},
        lossy=("l0/neurons", "l0.parametrizations.weight/units"),
    ),
    "diagonals": Case(
        lambda m, x: m.l1(
            (m.l0(x).mT @ m.l0(x)).diagonal(dim1=-2, dim2=-1).diag_embed()
            @ torch.eye(6, dtype=x.dtype)
        ).sum(1),
        linears(4, 6, 2),
        tokens(),
        {"l0/head-size": 6},
    ),
    "diagonal beside the main one": Case(
        lambda m, x: (m.l0(x).mT @ m.l0(x)).diagonal(1, 1, 2),
        linears(4, 6),
        tokens(),
        {},
        {"l0/head-size": "a diagonal beside the main one"},
    ),
    "trace": Case(
        lambda m, x: m.l0(x) * (m.w @ m.v).trace(),
        lambda: {"l0": nn.Linear(4, 2), "w": parameter(6, 5), "v": parameter(5, 6)},
        rows(),
        {"root/neurons": 6, "root/units": 5},
    ),
}
