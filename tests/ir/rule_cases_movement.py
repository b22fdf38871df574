"""Cases of `tests.ir.test_rules`: data movement, indexing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.ir.rule_case import Case, image, linears, parameter, rows, tokens

CASES: dict[str, Case] = {
    # data movement
    "view": Case(
        lambda m, x: m.l1(m.a(x).view(-1, 4 * 6 * 6)),
        lambda: {"a": nn.Conv2d(2, 4, 3, padding=1), "l1": nn.Linear(144, 2)},
        image(),
        {"a/channels": 4},
        {
            "l1/units": "spatial size of a convolution",
            "l1/units.2": "spatial size of a convolution",
        },
    ),
    "flatten": Case(
        lambda m, x: m.l1(m.a(x).flatten(1)),
        lambda: {"a": nn.Conv2d(2, 4, 3, padding=1), "l1": nn.Linear(144, 2)},
        image(),
        {"a/channels": 4},
        {
            "l1/units": "spatial size of a convolution",
            "l1/units.2": "spatial size of a convolution",
        },
    ),
    "unflatten": Case(
        lambda m, x: m.l1(m.l0(x).unflatten(1, (3, 4)).transpose(1, 2).flatten(1)),
        linears(4, 12, 2),
        rows(),
        {"l0/neurons": 3, "l0/neurons.2": 4},
    ),
    "view that does not factor": Case(
        lambda m, x: m.l1(m.l0(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 2, 3).flatten(1)),
        linears(4, 6, 2),
        rows(),
        {},
        {
            "l0/neurons": "factors do not divide one another",
            "l0/neurons.2": "factors do not divide one another",
            "l1/units": "factors do not divide one another",
            "l1/units.2": "factors do not divide one another",
        },
    ),
    "permute": Case(
        lambda m, x: m.l1(m.a(x).permute(0, 2, 3, 1)).mean((1, 2)),
        lambda: {"a": nn.Conv2d(2, 6, 1), "l1": nn.Linear(6, 2)},
        image(),
        {"a/channels": 6},
    ),
    "movedim": Case(
        lambda m, x: m.l1(m.a(x).movedim(1, -1)),
        lambda: {"a": nn.Conv2d(2, 6, 1), "l1": nn.Linear(6, 2)},
        image(),
        {"a/channels": 6},
    ),
    "transposed weight": Case(
        lambda m, x: (x @ m.w.t()) @ m.v.mT,
        lambda: {"w": parameter(6, 4), "v": parameter(2, 6)},
        rows(),
        {"root/units": 6},
    ),
    "squeeze": Case(
        lambda m, x: m.l1(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()),
        lambda: {"a": nn.Conv2d(2, 6, 1), "l1": nn.Linear(6, 2)},
        image(),
        {"a/channels": 6},
    ),
    "unsqueeze": Case(
        lambda m, x: m.l1((m.l0(x).unsqueeze(1) * m.s[None, :, None]).sum(1)),
        linears(4, 6, 2, s=lambda: parameter(5)),
        rows(),
        {"root/units": 5, "l0/neurons": 6},
    ),
    "expand": Case(
        lambda m, x: m.l1(m.s.expand(3, 6) + m.l0(x).mean(0, keepdim=True).expand(3, -1)),
        linears(4, 6, 2, s=lambda: parameter(1, 6)),
        rows(),
        {"l0/neurons": 6},
    ),
    "repeat": Case(
        lambda m, x: m.l1(m.l0(x).repeat(1, 2)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(12, 2)},
        rows(),
        {"l0/neurons": 6, "l1/units": 2},
    ),
    "repeat interleave that is told its size": Case(
        lambda m, x: m.l1(m.l0(x).repeat_interleave(2, 1, output_size=12)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(12, 2)},
        rows(),
        {"l0/neurons": 6, "l1/units": 2},
    ),
    "repeat interleave": Case(
        lambda m, x: m.l1(m.l0(x).repeat_interleave(2, 1)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(12, 2)},
        rows(),
        {"l0/neurons": 6, "l1/units": 2},
    ),
    "cat": Case(
        lambda m, x: m.l2(torch.cat([m.l0(x), m.l1(x)], 1)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 5), "l2": nn.Linear(11, 2)},
        rows(),
        {"l0/neurons": 6, "l1/neurons": 5},
    ),
    "stack": Case(
        lambda m, x: m.l2(torch.stack([m.l0(x), m.l1(x)], 1)).sum(1),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(4, 6), "l2": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 6},
    ),
    "split": Case(
        lambda m, x: (lambda a, b: m.l1(a) + m.l2(b))(*m.l0(x).split([6, 3], 1)),
        lambda: {"l0": nn.Linear(4, 9), "l1": nn.Linear(6, 2), "l2": nn.Linear(3, 2)},
        rows(),
        {"l0/neurons": 6, "l0/neurons.2": 3},
    ),
    "chunk": Case(
        lambda m, x: m.l1((lambda a, b: a * torch.sigmoid(b))(*m.l0(x).chunk(2, -1))),
        lambda: {"l0": nn.Linear(4, 12), "l1": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 6},
    ),
    "unbind": Case(
        lambda m, x: m.l1((lambda a, b: a + b)(*m.l0(x).view(-1, 2, 6).unbind(1))),
        lambda: {"l0": nn.Linear(4, 12), "l1": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons.2": 6},
        {"l0/neurons": "taken apart by unbind"},
    ),
    "tensor split, narrow": Case(
        lambda m, x: m.l1(m.l0(x).tensor_split(2, 1)[0] * m.l0(x).narrow(1, 3, 3)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(3, 2)},
        rows(),
        {"l0/neurons": 3},
    ),
    "hsplit, hstack, tile": Case(
        lambda m, x: m.l1(torch.hstack(m.l0(x).hsplit(2)[::-1]).tile(1, 2)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(12, 2)},
        rows(),
        {"l0/neurons": 3, "l0/neurons.2": 3, "l1/units": 2},
    ),
    "swapaxes, moveaxis, broadcast_to, view_as": Case(
        lambda m, x: m.l1(
            (m.l0(x).swapaxes(1, 2).moveaxis(1, -1) + m.s.broadcast_to(3, 5, 6))
            .flatten(0, 1)
            .view_as(m.l0(x))
        ),
        linears(4, 6, 2, s=lambda: parameter(1, 1, 6)),
        tokens(),
        {"l0/neurons": 6},
    ),
    "written in part": Case(
        lambda m, x: (lambda h: (h[:, :2].mul_(2.0), h[:, 4:].copy_(m.l2(x)), m.l1(h))[-1])(
            m.l0(x).clone()
        ),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 2)),
        rows(),
        {"l0/neurons": 2, "l0/neurons.2": 2, "l0/neurons.3": 2},
    ),
    "filled in part": Case(
        lambda m, x: (lambda h: (h[:, :2].fill_(2.0), h[:, 2:].copy_(m.l0(x)), m.l1(h))[-1])(
            torch.zeros(x.shape[0], 6, dtype=x.dtype)
        ),
        lambda: {"l0": nn.Linear(4, 4), "l1": nn.Linear(6, 2)},
        rows(),
        {"l0/neurons": 4, "l1/units": 2},
    ),
    "scatter of a slice": Case(
        lambda m, x: m.l1(torch.slice_scatter(m.l0(x), m.l2(x)[:, :2], 1, 0, 2)),
        linears(4, 6, 2, l2=lambda: nn.Linear(4, 6)),
        tokens(),
        {"l0/neurons": 6},
    ),
    "scatter of a slice of units": Case(
        lambda m, x: m.l1(torch.slice_scatter(m.l0(x), m.l2(x), 1, 2, 5)),
        lambda: {"l0": nn.Linear(4, 7), "l1": nn.Linear(7, 2), "l2": nn.Linear(4, 3)},
        rows(),
        {"l0/neurons": 2, "l0/neurons.2": 3, "l0/neurons.3": 2},
    ),
    "slice": Case(
        lambda m, x: m.l1(m.l0(x)[:, 2:6]) + m.l2(m.l0(x)[:, -3:]),
        lambda: {"l0": nn.Linear(4, 9), "l1": nn.Linear(4, 2), "l2": nn.Linear(3, 2)},
        rows(),
        {"l0/neurons": 2, "l0/neurons.2": 4, "l0/neurons.3": 3},
    ),
    "slice with a step": Case(
        lambda m, x: m.l1(m.l0(x)[:, ::2]),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(3, 2)},
        rows(),
        {"l0/neurons": 3},
        {"l0/neurons.2": "selects equal parts"},
    ),
    "slice with a step that does not divide": Case(
        lambda m, x: m.l1(m.l0(x)[:, ::4]),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(2, 2)},
        rows(),
        {},
        {
            "l0/neurons": "sliced with a step or a symbolic bound",
            "l1/units": "sliced with a step or a symbolic bound",
        },
    ),
    "pixel shuffle": Case(
        lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)),
        lambda: {"a": nn.Conv2d(2, 12, 1), "b": nn.Conv2d(3, 2, 1)},
        image(),
        {"a/channels": 3},
        {"a/channels.2": "pixel shuffle"},
    ),
    # indexing
    "select": Case(
        lambda m, x: m.l1(m.l0(x)[:, 0]),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(6, 2)},
        tokens(),
        {"l0/neurons": 6},
    ),
    "select a unit": Case(
        lambda m, x: m.l0(x)[:, 2] + m.l0(x)[:, -1],
        linears(4, 6),
        rows(),
        {"l0/neurons": 2, "l0/neurons.2": 2},
    ),
    "select among inputs": Case(
        lambda m, x: x[:, 2] + m.l0(x).sum(1), linears(4, 6), rows(), {"l0/neurons": 6}
    ),
    "embedding": Case(
        lambda m, x: m.l0(m.e((x[:, 0] > 0).long())),
        lambda: {"e": nn.Embedding(9, 6), "l0": nn.Linear(6, 2)},
        rows(),
        {"e/embedding": 6},
        {"e/vocabulary": "rows are addressed by data (embedding)"},
    ),
    "index": Case(
        lambda m, x: m.l1(m.l0(x)[:, torch.tensor([0, 5, 3])]),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(3, 2)},
        rows(),
        {},
        {
            "l0/neurons": "addressed by data (index)",
            "l1/units": "addressed by data (index)",
            "root/units": "addressed by data (index)",
        },
    ),
    "index of another dim": Case(
        lambda m, x: m.l1(m.l0(x)[:, torch.tensor([0, 2])]),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
        {"root/units": "addressed by data (index)"},
    ),
    "index select": Case(
        lambda m, x: m.l1(torch.index_select(m.l0(x), 1, torch.tensor([0, 2]))),
        linears(4, 6, 2),
        tokens(),
        {"l0/neurons": 6},
        {"root/units": "lives in no parameter"},
    ),
    "gather": Case(
        lambda m, x: m.l1(m.l0(x).gather(1, m.i.expand(x.shape[0], -1))),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(3, 2), "i": torch.tensor([[0, 3, 5]])},
        rows(),
        {},
        {"l0/neurons": "addressed by data (gather)", "l1/units": "addressed by data (gather)"},
    ),
    "positions": Case(
        lambda m, x: m.l1(m.l0(x) + torch.arange(6)),
        linears(4, 6, 2),
        rows(),
        {},
        {"l0/neurons": "values depend on position"},
    ),
    "zeros": Case(
        lambda m, x: m.l1(torch.cat([m.l0(x), torch.zeros(x.shape[0], 6)], 0)),
        linears(4, 6, 2),
        rows(),
        {"l0/neurons": 6},
    ),
    "pad": Case(
        lambda m, x: m.l1(F.pad(m.l0(x), (2, 1)) + m.l2(x)),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(9, 2), "l2": nn.Linear(4, 9)},
        rows(),
        {"l0/neurons": 6, "l2/neurons": 2},
    ),
    "pad by reflection": Case(
        lambda m, x: m.l1(F.pad(m.l0(x), (1, 1), mode="reflect")),
        lambda: {"l0": nn.Linear(4, 6), "l1": nn.Linear(8, 2)},
        tokens(),
        {},
        {"l0/neurons": "padded", "l1/units": "padded"},
    ),
    "pad of another dim": Case(
        lambda m, x: m.b(F.pad(m.a(x), (1, 1, 0, 1))),
        lambda: {"a": nn.Conv2d(2, 6, 1), "b": nn.Conv2d(6, 2, 1)},
        image(),
        {"a/channels": 6},
    ),
}
