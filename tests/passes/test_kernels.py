"""Larger kernels, staged ones, and branches behind a closed gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.propose import AddBranch, ProposalBase, PruneUnits, ResizeKernel, StageKernel, parse
from esper_passes.kernels import staged
from tests import oracle
from tests.live.training import OPTIMIZERS


class Net(nn.Module):
    """Convolutions with stride, dilation and groups, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.holes = nn.Conv2d(6, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(self.holes(torch.relu(self.stem(x))))
        logits: torch.Tensor = self.head(self.point(self.grouped(x)).mean((2, 3)))
        return logits


INPUTS = (torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return esper.trace(Net().double(), INPUTS)


def _node(model: Model, module: str) -> str:
    name: str = next(
        n.name for n in model.graph.nodes if n.op == "call_function" and n.meta["module"] == module
    )
    return name


@pytest.mark.parametrize(
    ("layer", "size"), [("stem", (5, 5)), ("holes", (5, 3)), ("grouped", (5, 5))]
)
def test_a_border_of_zeros_changes_nothing(
    model: Model, layer: str, size: tuple[int, int], tmp_path: Path
) -> None:
    proposal = ResizeKernel(node=_node(model, layer), size=size)
    wide, record = model.apply(proposal)
    assert record.kind == "passed", record.line()
    weight = wide.get_parameter(f"{layer}.weight")
    assert tuple(weight.shape[2:]) == size
    oracle.close(wide(*INPUTS), model(*INPUTS), layer)
    before, now = (oracle.gradients(m, INPUTS, {}) for m in (model, wide))
    for name, gradient in before.items():
        kept = now[name]
        assert kept is not None
        assert gradient is not None
        if name == f"{layer}.weight":
            off = [(a - b) // 2 for a, b in zip(kept.shape, gradient.shape, strict=True)]
            kept = kept[tuple(slice(c, s - c) for c, s in zip(off, kept.shape, strict=True))]
        oracle.close(kept, gradient, name)
    border = now[f"{layer}.weight"]
    assert border is not None
    assert bool(border[:, :, 0].any())  # it learns
    _, record = wide.apply(PruneUnits(axis="axis:stem/channels", units=(1,)))
    assert record.kind == "passed", record.line()
    esper.save(wide, tmp_path / "wide.esper")
    assert torch.equal(esper.load(tmp_path / "wide.esper")(*INPUTS), wide(*INPUTS))


def test_staging_is_the_best_approximation_of_its_rank(model: Model, tmp_path: Path) -> None:
    node, errors = _node(model, "stem"), []
    for multiplier in (1, 3, 9):
        pair, record = model.apply(StageKernel(node=node, multiplier=multiplier))
        assert record.kind == "passed", record.line()
        errors.append(record.figures["weight_error"])
        drift = (pair(*INPUTS) - model(*INPUTS)).detach().abs().max()
        exact = record.figures["tolerance"] == "reassociates"
        assert exact == (drift < 1e-12)
        assert "stem.weight" not in dict(pair.named_parameters())
        assert pair.get_parameter("stem.depthwise.weight").shape[1] == 1
        esper.save(pair, tmp_path / "pair.esper")
        assert torch.equal(esper.load(tmp_path / "pair.esper")(*INPUTS), pair(*INPUTS))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12
    weight = model.get_parameter("stem.weight").detach()
    depthwise, pointwise, error = staged(weight, 1)
    best = error
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # no neighbour is closer
        noise = 1 + 0.05 * torch.randn(depthwise.shape, generator=generator, dtype=torch.float64)
        product = (pointwise[:, :, 0, 0, None, None] * (depthwise * noise)[:, 0]).sub(weight)
        assert float(product.norm() / weight.norm()) > best


@pytest.mark.parametrize(
    ("layer", "width"), [("stem", 0), ("holes", 0), ("point", 0), ("head", 0), ("head", 3)]
)
def test_a_closed_gate_changes_nothing_and_opens(model: Model, layer: str, width: int) -> None:
    proposal = AddBranch(node=_node(model, layer), width=width)
    grown, record = model.apply(proposal)
    assert record.kind == "passed", record.line()
    assert torch.equal(grown(*INPUTS), model(*INPUTS))
    gate = grown.get_parameter(f"{layer}_branch.gate")
    assert not gate.detach().any()
    optimizer = OPTIMIZERS["adamw"](list(grown.parameters()))
    names = [n for n, _ in grown.named_parameters() if n.startswith(f"{layer}_branch")]
    before = {n: grown.get_parameter(n).detach().clone() for n in names}
    for _ in range(2):
        optimizer.zero_grad()
        grown(*INPUTS).square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(grown.get_parameter(n), before[n]) for n in names)


@pytest.mark.parametrize(
    ("proposal", "layer", "code"),
    [
        (ResizeKernel(node="", size=(4, 4)), "stem", "kernel-size"),
        (ResizeKernel(node="", size=(3, 3)), "stem", "kernel-size"),
        (ResizeKernel(node="", size=(5,)), "stem", "kernel-size"),
        (ResizeKernel(node="", size=(5, 5)), "head", "no-convolution"),
        (StageKernel(node=""), "grouped", "no-staging"),
        (StageKernel(node=""), "point", "no-staging"),
        (AddBranch(node=""), "grouped", "no-layer"),
        (AddBranch(node="", width=4), "stem", "no-layer"),
    ],
)
def test_refusals(model: Model, proposal: Any, layer: str, code: str) -> None:
    aimed = proposal.model_copy(update={"node": _node(model, layer)})
    assert parse(aimed.model_dump_json()) == aimed
    refusal = model.plan(aimed)
    assert isinstance(refusal, esper.plan.Refusal)
    assert refusal.code == code


def test_a_shared_weight_and_a_missing_node_are_refused(model: Model) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.conv(self.conv(x))
            return out

    twice = esper.trace(Twice().double(), INPUTS)
    proposals: list[tuple[Model, ProposalBase, str]] = [
        (twice, ResizeKernel(node=_node(twice, "conv"), size=(5, 5)), "shared-tensor"),
        (model, StageKernel(node="none"), "unknown-target"),
    ]
    for where, proposal, code in proposals:
        refusal = where.plan(proposal)
        assert isinstance(refusal, esper.plan.Refusal)
        assert refusal.code == code
