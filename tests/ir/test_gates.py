"""Gates: neutral at one, equal to a mask at zero, gradients equal finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from esper.ir.gates import gated
from esper.ir.model import Model
from esper.ir.reference import masked_reference
from tests import oracle, zoo
from tests.ir.small import convolution_inputs, convolutions

NAMES = ("llama_native_norm", "gpt2", "efficientnet")


def value(model: Model, args: Any, kwargs: Any) -> torch.Tensor:
    """A smooth scalar function of the outputs."""
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    return torch.stack([leaf.square().mean() for leaf in leaves]).sum()


def axes_of(model: Model) -> list[str]:
    """Axes whose removal means zero, not other statistics."""
    axes = zoo.cuttable(model)
    return [name for name, axis in axes.items() if axis.lossy_reason is None]


@pytest.mark.parametrize("name", NAMES)
def test_gates(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    axes = axes_of(model)
    copied, gates = gated(model, axes)
    assert list(gates) == axes
    assert all(gate.shape == (model.anatomy.axes[a].size,) for a, gate in gates.items())
    wanted = [p for p in copied.parameters() if p.requires_grad]
    assert {id(p) for p in wanted} == {id(gate) for gate in gates.values()}

    start = value(copied, args, kwargs)
    torch.testing.assert_close(start, value(model, args, kwargs), rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(start, list(gates.values()))

    for (axis, gate), gradient in zip(gates.items(), gradients, strict=True):
        unit = len(gate) // 2
        with torch.no_grad():
            step = 1e-5
            gate[unit] = 1 + step
            above = value(copied, args, kwargs)
            gate[unit] = 1 - step
            below = value(copied, args, kwargs)
            gate[unit] = 1.0
        difference = (above - below) / (2 * step)
        torch.testing.assert_close(gradient[unit], difference, rtol=1e-5, atol=1e-9, msg=axis)


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_gate_is_a_mask(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    axes = axes_of(model)
    copied, gates = gated(model, axes)
    removed = zoo.joint_cut([model.anatomy.axes[a] for a in axes])
    with torch.no_grad():
        for axis, units in removed.items():
            gates[axis][list(units)] = 0.0
    masked = masked_reference(model, removed)
    for mine, theirs in zip(
        oracle.run(copied, args, kwargs), oracle.run(masked, args, kwargs), strict=True
    ):
        oracle.close(mine, theirs, "output")


def test_the_model_is_not_changed() -> None:
    model = convolutions()
    text, names = str(model), list(model.state_dict())
    copied, gates = gated(model, ["axis:conv/channels"])
    gates["axis:conv/channels"].data.zero_()
    assert str(model) == text
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    bias = copied.tensor("fc.bias")
    assert bias is not None
    torch.testing.assert_close(copied(*convolution_inputs()), bias.expand(2, -1))
