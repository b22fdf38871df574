"""Times of nodes: every computing node once, shares that add up, and what is refused."""

from __future__ import annotations

import pytest
import torch

from esper.node_times import node_seconds
from tests.ir.small import perceptron, perceptron_inputs


def test_every_computing_node_has_a_time() -> None:
    model = perceptron()
    seconds = node_seconds(model, perceptron_inputs(), {}, repeats=2)
    assert list(seconds) == [n.name for n in model.graph.nodes if n.op == "call_function"]
    assert all(value > 0 for value in seconds.values())


def test_the_mode_and_the_values_stay() -> None:
    model = perceptron().train()
    before = {name: tensor.clone() for name, tensor in model.all_tensors()}
    node_seconds(model, (), {"ids": perceptron_inputs()[0]}, repeats=1)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.all_tensors())
    assert all(p.grad is None for p in model.parameters())


def test_another_device_is_refused() -> None:
    model = perceptron().to("meta")
    with pytest.raises(ValueError, match="on the CPU"):
        node_seconds(model, perceptron_inputs(), {})
