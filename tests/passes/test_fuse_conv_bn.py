"""Batch norm folds into the layer before it; near misses are refused with a reason."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.ir.graphs_equal import graphs_equal
from esper.ir.trace import trace
from esper.propose import FuseConvBN as Proposal
from esper.state import Create, Replace
from esper_passes.fuse_conv_bn import FuseConvBN
from tests.models import MODELS
from tests.passes.support import drift, drive, ops, refusal, refused, same_state, traced

BatchNorm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
Convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
Transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def pair(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layer=layer, norm=norm))


def image(dims: int, channels: int = 4) -> Tensor:
    return torch.randn(3, channels, *[5] * dims, dtype=torch.float64)


LAYERS: dict[str, Any] = {
    "conv1d": lambda: (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), image(1)),
    "conv2d": lambda: (nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), image(2)),
    "conv3d": lambda: (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), image(3)),
    "no-bias": lambda: (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), image(2)),
    "grouped": lambda: (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), image(2)),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), image(2)),
    "same": lambda: (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), image(2)),
    "transposed1d": lambda: (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), image(1)),
    "transposed2d": lambda: (nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), image(2)),
    "transposed3d": lambda: (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), image(3)),
    "transposed-grouped": lambda: (
        nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False),
        nn.BatchNorm2d(6),
        image(2),
    ),
    "linear": lambda: (nn.Linear(5, 6), nn.BatchNorm1d(6), image(0, 5)),
    "linear-no-bias": lambda: (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), image(0, 5)),
    "plain-norm": lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), image(2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_input_gradients_stay(name: str) -> None:
    layer, norm, x = LAYERS[name]()
    model = traced(pair(layer, norm), x)
    fused, records, remarks = drive(FuseConvBN(), model)
    assert [record.kind for record in records] == ["passed"]
    assert records[0].figures["tolerance"] == "reassociates"
    assert not remarks
    assert "batch_norm" not in ops(fused)
    assert drift(model, fused, (x,)) < 1e-12
    assert list(fused.state_dict()) == ["layer.weight", "layer.bias"]
    gradients = []
    for each in (model, fused):
        leaf = x.clone().requires_grad_()
        each(leaf).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_graph_equals_a_layer_with_bias(bias: bool) -> None:
    x = image(2)
    fused, _, _ = drive(
        FuseConvBN(), traced(pair(nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6)), x)
    )
    expected = traced(nn.Sequential(OrderedDict(layer=nn.Conv2d(4, 6, 3))), x)
    assert graphs_equal(fused, expected) is None
    assert all(p.requires_grad for p in fused.parameters())


def test_second_run_finds_nothing() -> None:
    fused, _, _ = drive(FuseConvBN(), traced(pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), image(2)))
    again, records, remarks = drive(FuseConvBN(), fused)
    assert not records
    assert [remark.code for remark in remarks] == ["no-conv-bn"]
    same_state(again, fused)


@pytest.mark.parametrize(
    "name", ["resnet_basic", "resnet_bottleneck", "efficientnet", "unet", "unet_interpolate"]
)
def test_every_norm_of_the_zoo_goes(name: str) -> None:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    model = trace(module, args, kwargs)
    fused, records, _ = drive(FuseConvBN(), model)
    assert len(records) == ops(model).count("batch_norm")
    assert "batch_norm" not in ops(fused)
    assert drift(module, fused, args, kwargs) < 1e-10
    assert not any("running" in key or "batches" in key for key in fused.state_dict())


def test_half_precision_weights_are_computed_in_double() -> None:
    layer, norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
    nn.init.uniform_(norm.running_var, 0.01, 0.02)  # type: ignore[arg-type]
    x = image(2).bfloat16()
    model = trace(pair(layer, norm).bfloat16().eval(), (x,))
    plan = model.plan(Proposal(convolution="conv2d", batch_norm="batch_norm"))
    replaced = plan.state.ops["layer.weight"][0]  # type: ignore[union-attr]
    assert isinstance(replaced, Replace)
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.detach().double()
    exact = layer.weight.detach().double() * scale[:, None, None, None]
    assert torch.equal(replaced.value, exact.bfloat16())


def test_created_bias_trains_like_its_weight() -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False).requires_grad_(False)
    model = traced(pair(layer, nn.BatchNorm2d(6)), image(2))
    plan = model.plan(Proposal(convolution="conv2d", batch_norm="batch_norm"))
    created = plan.state.ops["layer.bias"][0]  # type: ignore[union-attr]
    assert isinstance(created, Create)
    assert not created.trainable


# -- near misses -------------------------------------------------------------------------------

PAIR = Proposal(convolution="conv2d", batch_norm="batch_norm")


def test_training_mode_is_refused() -> None:
    model = traced(pair(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), image(2)).train()
    record = refused(model, PAIR)
    assert (record.code, record.node) == ("training-mode", "batch_norm")
    assert "eval" in record.remedy


def test_norm_without_statistics_is_refused() -> None:
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    record = refused(traced(pair(nn.Conv2d(4, 6, 3), norm), image(2)), PAIR)
    assert (record.code, record.node) == ("no-statistics", "batch_norm")


class Between(nn.Module):
    """Convolution and norm with something `between`, or a second reader."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.second:
            out: Tensor = self.norm(y) + y
            return out
        return self.norm(functional.relu(y))  # type: ignore[no-any-return]


def test_value_with_a_second_reader_is_refused() -> None:
    record = refused(traced(Between(second=True), image(2)), PAIR)
    assert (record.code, record.node) == ("shared-value", "conv2d")


def test_norm_after_something_else_is_not_proposed() -> None:
    model = traced(Between(second=False), image(2))
    _, records, remarks = drive(FuseConvBN(), model)
    assert not records
    assert [remark.code for remark in remarks] == ["no-conv-bn"]
    assert refused(model, PAIR).code == "not-a-pair"
    other = Proposal(convolution="relu", batch_norm="batch_norm")
    assert refused(model, other).code == "not-linear"


class Tied(nn.Module):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.first(self.second(x)))
        return out


def test_tied_weight_is_refused() -> None:
    model = traced(Tied(), image(2))
    record = refused(model, Proposal(convolution="conv2d_1", batch_norm="batch_norm"))
    assert record.code == "tied-parameter"
    assert "conv2d" in record.reason


class Scaled(nn.Module):
    """A convolution whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(functional.conv2d(x, self.weight * 2))
        return out


def test_computed_weight_is_refused() -> None:
    assert refused(traced(Scaled(), image(2)), PAIR).code == "computed-parameter"


class OverTime(nn.Module):
    """A norm over dimension 1, which is not where the linear layer puts its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(x))
        return out


def test_norm_over_another_dimension_is_refused() -> None:
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    why = refusal(traced(OverTime(), x), Proposal(convolution="linear", batch_norm="batch_norm"))
    assert why.code == "other-channels"
