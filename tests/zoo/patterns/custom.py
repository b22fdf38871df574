"""A user's own ops: without a rule frozen and named, with one cut like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import esper
from esper.ir.axes import Dims, Rules
from esper.ir.codec import trust
from tests.zoo.entry import Entry
from tests.zoo.patterns.make import pattern, rows


@torch.library.custom_op("esper_zoo::blend", mutates_args=())
def blend(x: Tensor, y: Tensor) -> Tensor:
    """A weighed sum; nobody wrote a rule for it."""
    return 0.25 * x + 0.75 * y


@torch.library.custom_op("esper_zoo::scaled", mutates_args=())
def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x times a scale per unit; it has a rule."""
    return x * scale


@blend.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


@scaled.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


blend.register_autograd(lambda ctx, grad: (0.25 * grad, 0.75 * grad))


def _save(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[attr-defined]


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    return grad * scale, (grad * x).sum(0)


scaled.register_autograd(_backward, setup_context=_save)


def scaled_rule(r: Rules) -> Dims:
    """x (..., D), scale (D) -> (..., D)."""
    x, scale = r.of(r.arg(0)), r.of(r.arg(1))
    r.unify(x[-1], scale[0])
    return x


trust("esper_zoo")  # so that files may name it
esper.register_axis_rule(torch.ops.esper_zoo.scaled.default, scaled_rule)


class Blended(nn.Module):
    """The op without a rule stands between two linears; a third one beside it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)
        self.mid = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mid(blend(self.one(x), self.two(x)))))


class Scaled(nn.Module):
    """The op with a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(scaled(self.one(x), self.scale))


_ONNX = "a custom op"
TABLE: tuple[Entry, ...] = (
    pattern(
        "custom_op_without_a_rule",
        Blended,
        rows(),
        reach={"neurons": 1},
        stops={
            "axis:one/neurons": "no axis rule for esper_zoo.blend.default",
            "axis:two/neurons": "no axis rule for esper_zoo.blend.default",
        },
        onnx=_ONNX,
    ),
    pattern("custom_op_with_a_rule", Scaled, rows(), reach={"neurons": 1}, onnx=_ONNX, fast=True),
)
