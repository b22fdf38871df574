"""Multiply-accumulates against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.ir.model import Model
from esper.manager import PassManager
from esper.propose import PruneUnits
from esper_passes.cost import macs, unit_costs
from tests import zoo
from tests.models import MODELS


def counted(model: Model, args: Any, kwargs: Any) -> float:
    """Half of the floating-point operations that PyTorch counts.

    Attention runs as matrix products, since the fused kernel for CPUs is not counted.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return float(counter.get_total_flops()) / 2


def total(model: Model) -> float:
    return sum(macs(node) for node in model.graph.nodes)


# Attention written out by hand and by sdpa, Conv1D as addmm, depthwise, transposed, strided.
@pytest.mark.parametrize(
    "name", [n for n in MODELS if n in {"bert_eager", "gpt2", "efficientnet", "unet", "convnext"}]
)
def test_models_of_the_zoo(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    assert total(model) == pytest.approx(counted(model, args, kwargs), rel=1e-6)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(7, 5), torch.randn(3, 4, 7)),
        (nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), torch.randn(2, 4, 9, 9)),
        (nn.Conv3d(2, 3, 2), torch.randn(2, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), torch.randn(2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
    ],
)
def test_single_ops(module: nn.Module, x: Tensor) -> None:
    model = esper.trace(module.eval(), (x,))
    assert total(model) == counted(model, (x,), {}) > 0


class Products(nn.Module):
    """Products of two inputs, (2, 3, 5) and (2, 5, 4)."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.op(a, b)


@pytest.mark.parametrize(
    "op",
    [
        lambda a, b: a @ b,
        torch.bmm,
        lambda a, b: torch.baddbmm(torch.bmm(a, b), a, b),
        lambda a, b: a[0] @ b[0],
        lambda a, b: torch.addmm(b[0, 0], a[0], b[0]),
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        lambda a, b: torch.einsum("bij,cjk->bick", a, b),
    ],
)
def test_products(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    inputs = (torch.randn(2, 3, 5), torch.randn(2, 5, 4))
    model = esper.trace(Products(op), inputs, dynamic="static")
    assert total(model) == counted(model, inputs, {})


def test_a_matrix_times_a_vector() -> None:
    inputs = (torch.randn(2, 3, 5), torch.randn(2, 5, 4))
    model = esper.trace(Products(lambda a, b: torch.mv(a[0], b[0, :, 0])), inputs, dynamic="static")
    assert total(model) == 3 * 5  # PyTorch's counter leaves this op out


@pytest.mark.parametrize("name", ["resnet_basic", "gpt2"])
def test_cost_of_a_unit_is_what_its_cut_saves(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    axes = [a for a in zoo.cuttable(model).values() if a.kind in ("channels", "neurons")][:4]
    costs = unit_costs(model, axes)
    for axis in axes:
        changed = model.apply(PruneUnits(axis=axis.id, units=axis.unit_ids[:1]))[0]
        assert total(model) - total(changed) == pytest.approx(costs[axis.id])
        saved = counted(model, args, kwargs) - counted(changed, args, kwargs)
        assert saved == pytest.approx(costs[axis.id])


def test_cost_follows_the_present_sizes() -> None:
    model, _, _ = zoo.traced("resnet_basic")
    first, second = "axis:layers.0/channels", "axis:conv1/channels"
    before = unit_costs(model, [model.anatomy.axes[first]])[first]
    record = PassManager(model).apply(PruneUnits(axis=second, units=(0, 1, 2, 3)))
    assert record.kind == "passed"
    after = unit_costs(model, [model.anatomy.axes[first]])[first]
    assert after == pytest.approx(before / 2)
