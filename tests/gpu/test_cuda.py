"""The same promises on a CUDA device: exact cuts, undo bit for bit, device literals, the gate."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import esper
from esper.gate.gate import Gate
from esper.ir.model import Model
from esper.ir.reference import masked_reference
from esper.ir.verifier import verify
from esper.manager import PassManager
from esper.propose import PruneUnits
from tests import oracle, zoo
from tests.snapshots import assert_same, snapshot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NAMES = ("bert", "llama", "resnet_basic", "unet")


def on_cuda(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    """A float64 model of the zoo, moved with its inputs."""
    model, args, kwargs = zoo.traced(name)
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.cuda(), (args, kwargs))
    return model.cuda(), args, kwargs


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_model_verifies_and_computes_the_same(name: str) -> None:
    model, args, kwargs = on_cuda(name)
    verify(model)
    host, host_args, host_kwargs = zoo.traced(name)
    for mine, theirs in zip(
        oracle.run(model, args, kwargs), oracle.run(host, host_args, host_kwargs), strict=True
    ):
        assert mine.is_cuda
        oracle.close(mine.cpu(), theirs, "output")


@pytest.mark.parametrize("name", NAMES)
def test_cuts_are_exact(name: str) -> None:
    model, args, kwargs = on_cuda(name)
    removed = zoo.joint_cut([a for a in zoo.cuttable(model).values() if a.lossy_reason is None])
    reference, cut = masked_reference(model, removed), oracle.cut_all(model, removed)
    verify(cut)
    for mine, theirs in zip(
        oracle.run(cut, args, kwargs), oracle.run(reference, args, kwargs), strict=True
    ):
        oracle.close(mine.cpu(), theirs.cpu(), "output")


@pytest.mark.parametrize("name", NAMES)
def test_rolling_back_restores_every_bit(name: str) -> None:
    model, args, kwargs = on_cuda(name)
    outputs = [o for o in oracle.run(model, args, kwargs) if o.requires_grad]
    torch.autograd.backward([o.square().sum() for o in outputs])
    before = snapshot(model)
    manager = PassManager(model)
    with manager.transaction() as transaction:
        for axis in zoo.cuttable(model).values():
            manager.apply(PruneUnits(axis=axis.id, units=axis.unit_ids[:1]))
        transaction.roll_back()
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_casting_stays_near(dtype: str) -> None:
    model, args, kwargs = on_cuda("bert")
    model.float()
    narrow = esper.optimize(model, f"cast{{dtype={dtype}}}").model
    for mine, theirs in zip(
        oracle.run(narrow, args, kwargs), oracle.run(model, args, kwargs), strict=True
    ):
        assert mine.is_cuda
        assert bool(torch.isfinite(mine).all())
        assert float((mine.float() - theirs).norm() / theirs.norm()) < 0.05


def test_a_file_written_from_the_device_loads_on_the_host(tmp_path: Path) -> None:
    model, _, _ = on_cuda("llama")
    path = tmp_path / "model.esper"
    esper.save(model, path)
    loaded = esper.load(path)
    assert {t.device.type for _, t in loaded.all_tensors()} == {"cpu"}
    host, args, kwargs = zoo.traced("llama")
    for mine, theirs in zip(
        oracle.run(loaded, args, kwargs), oracle.run(host, args, kwargs), strict=True
    ):
        oracle.close(mine, theirs, "output")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_the_gate_measures_on_the_device_and_refuses_a_copy(backend: str) -> None:
    model, args, kwargs = on_cuda("bert")
    gate = Gate(backend=backend, device="cuda", budget_seconds=40.0)
    verdict = gate.compare(model, copy.deepcopy(model), (args, kwargs))
    assert not verdict.accepted
    assert verdict.processes > 0
