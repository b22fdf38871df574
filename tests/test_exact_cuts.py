"""The main proof: cutting equals masking, for every axis of every model of the zoo.

Outputs, gradients, and buffers after a training step agree in float64 with the uncut model whose
removed units are masked where they are consumed, and nothing that the removed units owned is read.
"""

from __future__ import annotations

import pytest

from tests import oracle, zoo
from tests.models import MODELS

# One by one where axes differ most: fused q|k|v, rotary and grouped heads, residual sums with
# batch norm, squeeze-excite and depthwise, layer norm over channels, skip concatenation.
ONE_BY_ONE = ("bert_eager", "gpt2", "llama_native_norm", "efficientnet", "convnext", "unet")

# How many axes of each model may be cut, so that a rule that starts to freeze does not pass
# for a proof by testing nothing.
CUTTABLE = {
    "bert": 10,
    "bert_eager": 10,
    "bert_encoder": 8,
    "gpt2": 9,
    "llama": 10,
    "llama_native_norm": 10,
    "vit": 9,
    "resnet_basic": 9,
    "resnet_bottleneck": 15,
    "efficientnet": 12,
    "convnext": 6,
    "unet": 12,
    "unet_interpolate": 12,
}


pytestmark = pytest.mark.own_verification  # the oracle verifies the result of all cuts


def test_every_model_has_an_expectation() -> None:
    assert CUTTABLE.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_all_axes_cut_together(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    axes = zoo.cuttable(model)
    assert len(axes) == CUTTABLE[name]
    cut = oracle.assert_exact_cut(model, zoo.joint_cut(list(axes.values())), args, kwargs)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_each_axis_cut_alone(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    for axis in zoo.cuttable(model).values():
        removed = {axis.id: zoo.some_units(axis, seed=1)}
        oracle.assert_exact_cut(model, removed, args, kwargs)


@pytest.mark.parametrize("name", ["gpt2", "llama_native_norm", "resnet_basic"])
def test_down_to_one_unit(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    axes = zoo.cuttable(model).values()
    removed = {axis.id: axis.unit_ids[:-1] for axis in axes if axis.lossy_reason is None}
    oracle.assert_exact_cut(model, removed, args, kwargs)
