"""New depth is the identity at first, learns, and has names and IDs of its own."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.propose import Deepen, DropRegion, parse
from esper_passes.deepen import DeepenPass
from tests import oracle
from tests.live.training import OPTIMIZERS, batch, step
from tests.live.training import traced as network
from tests.models import MODELS
from tests.passes.growth_models import build
from tests.passes.support import drive


@cache
def _traced(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    if name == "fused":
        module, args = build(name)
        return esper.trace(module, args), args, {}
    module, args, kwargs = MODELS[name](torch.float64)
    return esper.trace(module, args, kwargs).eval(), args, kwargs


# A region with branches, and the path of its copy.
BLOCKS = {
    "fused": ("phage:block", "block_2"),  # two branches, one inside the other's result
    "resnet_basic": ("phage:layers.1", "layers.1_2"),  # batch norms, a rectifier behind the sum
    "convnext": ("phage:stage1.0", "stage1.0_2"),  # a branch that ends in a layer scale
}


@pytest.mark.own_verification
@pytest.mark.parametrize("name", BLOCKS)
def test_a_copied_block_is_the_identity(name: str) -> None:
    model, args, kwargs = _traced(name)
    region, path = BLOCKS[name]
    expected, gradients = oracle.run(model, args, kwargs), oracle.gradients(model, args, kwargs)
    names = set(dict(model.named_parameters()))
    deep, record = model.apply(Deepen(after=region))
    assert record.kind == "passed", record.line()
    assert record.figures["tolerance"] == "exact"
    verify(deep)
    for found, wanted in zip(oracle.run(deep, args, kwargs), expected, strict=True):
        assert torch.equal(found, wanted)
    now = oracle.gradients(deep, args, kwargs)
    for parameter, gradient in gradients.items():
        other = now[parameter]
        assert gradient is not None
        assert other is not None
        oracle.close(other, gradient, parameter)
    new = set(now) - names
    assert new
    assert all(parameter.startswith(f"{path}.") for parameter in new)
    assert any(g is not None and bool(g.any()) for n, g in now.items() if n in new)
    assert any(key.startswith(f"phage:{path}") for key in deep.anatomy.phages)
    assert region in deep.anatomy.phages  # the original keeps its ID
    assert set(model.anatomy.axes) <= set(deep.anatomy.axes)
    again, record = deep.apply(Deepen(after=region))
    assert record.kind == "passed"
    assert any(f"{path.rpartition('_')[0]}_3" in key for key in dict(again.named_parameters()))


@pytest.mark.own_verification
def test_dropping_the_copy_undoes_it() -> None:
    model, _, _ = _traced("fused")
    deep, _ = model.apply(Deepen(after="phage:block"))
    back, record = deep.apply(DropRegion(region="phage:block_2"))
    assert record.kind == "passed", record.line()
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.own_verification
def test_copied_batch_norms_follow_the_mode_and_count() -> None:
    model, args, kwargs = _traced("resnet_basic")
    training = copy.deepcopy(model).train()
    deep, record = training.apply(Deepen(after="phage:layers.3"))
    assert record.kind == "passed", record.line()
    assert torch.equal(deep(*args, **kwargs), training(*args, **kwargs))
    counter = dict(deep.named_buffers())["layers.3_2.bn1.num_batches_tracked"]
    before = int(counter)
    for mode in (False, True, False):
        deep.train(mode)
        verify(deep)
        deep(*args, **kwargs)
    assert int(counter) == before + 1  # in training alone
    back, record = deep.apply(DropRegion(region="phage:layers.3_2"))
    assert record.kind == "passed", record.line()
    assert back.state_dict().keys() == model.state_dict().keys()


def _plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def _convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 5, 3, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    module = nn.Sequential(*layers).eval()
    module(torch.randn(1, 2, 6, 6))
    return module.double()


@pytest.mark.parametrize(
    ("module", "shape", "layer"),
    [(_plain(), (2, 4), (6, 6)), (_convolutional(), (2, 2, 6, 6), (5, 5, 3, 3))],
)
def test_an_identity_layer_where_there_is_no_residual(
    module: nn.Module, shape: tuple[int, ...], layer: tuple[int, ...], tmp_path: Path
) -> None:
    inputs = (torch.randn(shape, dtype=torch.float64),)
    model = esper.trace(module, inputs).eval()
    (relu,) = [n.name for n in model.graph.nodes if "relu" in n.name]
    deep, record = model.apply(Deepen(after=relu, name="extra"))
    assert record.kind == "passed", record.line()
    assert torch.equal(deep(*inputs), model(*inputs))
    assert deep.get_parameter("extra.weight").shape == layer
    deep(*inputs).sum().backward()
    gradient = deep.get_parameter("extra.weight").grad
    assert gradient is not None
    assert bool(gradient.any())
    esper.save(deep, tmp_path / "deep.esper")
    assert torch.equal(esper.load(tmp_path / "deep.esper")(*inputs), model(*inputs))
    assert torch.equal(torch.export.export(deep, inputs).module()(*inputs), model(*inputs))


def test_refusals() -> None:
    model = network()
    for after, code in (
        ("phage:none", "unknown-target"),
        ("batch_norm", "no-layer"),
        ("x", "no-layer"),
    ):
        record = esper.PassManager(copy.deepcopy(model)).apply(Deepen(after=after))
        assert (record.kind, record.code) == ("missed", code), record.line()
    mlp = esper.trace(
        nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), nn.Linear(4, 2)),
        (torch.randn(2, 4),),
    )
    record = esper.PassManager(mlp).apply(Deepen(after="phage:0"))
    assert (record.kind, record.code) == ("missed", "not-residual")


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_training_goes_on_deeper(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(0)
    step(model, optimizer, batch(generator))
    session = esper.Session(model, optimizer)
    inputs = batch(generator)
    expected = model(inputs[0])
    proposal = Deepen(after="phage:block")
    assert parse(proposal.model_dump_json()) == proposal
    with session.boundary() as boundary:
        (record,) = boundary.submit(proposal)
        assert record.kind == "passed", record.line()
    torch.testing.assert_close(model(inputs[0]), expected)
    weight = model.get_parameter("block_2.2.weight")
    assert not weight.detach().any()
    for _ in range(2):
        assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))
    assert bool(weight.detach().any())  # it learns
    session.check()


def test_the_pass_copies_blocks_from_the_output_backwards() -> None:
    model, _, _ = _traced("fused")
    deep, records, _ = drive(DeepenPass(only="phage:b*"), model)
    assert [r.proposal.targets for r in records if r.proposal] == [("phage:block",)]
    assert "phage:block_2" in deep.anatomy.phages
    _, records, remarks = drive(DeepenPass(only="nothing"), model)
    assert (records, [r.code for r in remarks]) == ([], ["fewer-regions"])
    with pytest.raises(ValueError, match="count"):
        DeepenPass(count=0)
