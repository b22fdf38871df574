"""Sedation computes what a removal would, and waking restores everything bit for bit."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.ir.reference import masked_reference
from esper.propose import DropRegion, ProposalBase, PruneUnits, Sedate, Wake
from tests import oracle
from tests.live.training import traced
from tests.models import MODELS
from tests.snapshots import assert_same, snapshot

# A few axes of every kind that is consumed in a way of its own.
AXES = {
    "bert": ("heads", "embedding"),  # contraction, layer norm
    "llama_native_norm": ("kv-groups", "embedding"),  # products, means
}


@cache
def zoo(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    module, args, kwargs = MODELS[name](torch.float64)
    return esper.trace(module, args, kwargs).eval(), args, kwargs


def _passed(manager: esper.PassManager, proposal: ProposalBase) -> None:
    record = manager.apply(proposal)
    assert record.kind == "passed", record.line()


def _without_history(model: Model) -> dict[str, Any]:
    found = snapshot(model)
    del found["history"]
    return {**found, "ecology": model.ecology.data()}


@pytest.mark.parametrize("name", AXES)
def test_units_sleep_as_the_reference_masks_them(name: str) -> None:
    original, args, kwargs = zoo(name)
    model = copy.deepcopy(original)
    manager = esper.PassManager(model, verify="none")
    expected = oracle.run(model, args, kwargs)
    before = _without_history(model)
    for kind in AXES[name]:
        axis = next(a for a in model.anatomy.axes.values() if a.kind == kind and a.cuttable)
        units = axis.unit_ids[:: max(axis.size // 3, 2)]
        reference = masked_reference(original, {axis.id: units})
        _passed(manager, Sedate(target=axis.id, units=units))
        assert model.ecology.immunity(axis.id).sedated
        outputs = oracle.run(model, args, kwargs), oracle.run(reference, args, kwargs)
        assert all(map(torch.equal, *outputs))
        gradients = oracle.gradients(reference, args, kwargs)
        for parameter, gradient in oracle.gradients(model, args, kwargs).items():
            other = gradients[parameter]
            if gradient is None or other is None:
                assert gradient is other
            else:
                assert torch.equal(gradient, other)
        model.zero_grad(set_to_none=True)
        assert model.anatomy.axes[axis.id] == original.anatomy.axes[axis.id]
        _passed(manager, Wake(target=axis.id))
        assert_same(before, _without_history(model))
    assert all(map(torch.equal, oracle.run(model, args, kwargs), expected))


@pytest.mark.parametrize(("name", "branch"), [("bert", False), ("llama_native_norm", True)])
def test_a_sleeping_region_hands_on_what_enters_it(name: str, branch: bool) -> None:
    original, args, kwargs = zoo(name)
    model = copy.deepcopy(original)
    manager = esper.PassManager(model)
    before = _without_history(model)
    phages = model.anatomy.phages.values()
    regions = [p for p in phages if p.bypassable and p.branch == branch]
    assert regions
    for phage in regions[:2]:
        dropped, record = original.apply(DropRegion(region=phage.id))
        assert record.kind == "passed"
        _passed(manager, Sedate(target=phage.id))
        outputs = oracle.run(model, args, kwargs), oracle.run(dropped, args, kwargs)
        assert all(map(torch.equal, *outputs))
        assert dict(model.anatomy.phages) == before["phages"]
        _passed(manager, Wake(target=phage.id))
        assert_same(before, _without_history(model))


def test_not_even_nan_gets_through_a_gate() -> None:
    model = traced().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    wounded = copy.deepcopy(model)
    wounded.get_parameter("block.0.weight").data[[1, 4]] = float("nan")
    manager = esper.PassManager(wounded)
    assert wounded(x).isnan().any()
    _passed(manager, Sedate(target="axis:block.0/neurons", units=(1, 4)))
    cut, _ = model.apply(PruneUnits(axis="axis:block.0/neurons", units=(1, 4)))
    torch.testing.assert_close(wounded(x), cut(x))
    _passed(manager, Wake(target="axis:block.0/neurons"))
    _passed(manager, Sedate(target="phage:block"))
    assert wounded(x).isfinite().all()


@pytest.mark.parametrize("target", ["axis:block.0/neurons", "phage:block"])
def test_what_is_first_asked_for_while_something_sleeps_is_known_awake(target: str) -> None:
    wanted = copy.deepcopy(traced())
    parts = dict(wanted.anatomy.axes), dict(wanted.anatomy.phages), dict(wanted.anatomy.slots)
    model = copy.deepcopy(wanted)
    model.invalidate()
    manager = esper.PassManager(model)
    _passed(manager, Sedate(target=target, units=(1,) if "axis" in target else ()))
    model.invalidate()  # as in a model that was read from a file
    text = str(model)
    assert "sedation" in text
    anatomy = model.anatomy
    assert (dict(anatomy.axes), dict(anatomy.phages), dict(anatomy.slots)) == parts
    assert str(model) == text  # looking changes nothing
    _passed(manager, Wake(target=target))
    assert str(model) == str(wanted)
    _passed(manager, DropRegion(region="phage:block"))


def test_one_target_sleeps_at_a_time_and_nothing_changes_meanwhile() -> None:
    model = traced()
    manager = esper.PassManager(model)
    asleep = Sedate(target="axis:block.0/neurons", units=(1,))
    _passed(manager, asleep)
    for proposal in (
        asleep,
        Sedate(target="phage:block"),
        PruneUnits(axis="axis:stem/neurons", units=(0,)),
    ):
        record = manager.apply(proposal)
        assert (record.kind, record.code) == ("missed", "sedated")
        assert "Wake(target='axis:block.0/neurons')" in record.remedy
    record = manager.apply(Wake(target="phage:block"))
    assert (record.code, record.remedy) == ("not-sedated", "sedated is axis:block.0/neurons")
    _passed(manager, Wake(target="axis:block.0/neurons"))
    assert manager.apply(Wake(target="axis:block.0/neurons")).code == "not-sedated"
    _passed(manager, PruneUnits(axis="axis:stem/neurons", units=(0,)))


class Widens(nn.Module):
    """A region that changes the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two numbers."""
        out: torch.Tensor = self.head(self.wide(x))
        return out


def test_what_cannot_be_removed_is_not_sedated() -> None:
    model = esper.trace(Widens().eval(), (torch.randn(3, 4),))
    refusals = {
        "not-bypassable": Sedate(target="phage:wide"),
        "frozen-axis": Sedate(target="axis:head/neurons", units=(0,)),
        "unknown-target": Sedate(target="phage:nowhere"),
        "unknown-unit": Sedate(target="axis:wide.0/neurons", units=(6,)),
        "empty-axis": Sedate(target="axis:wide.0/neurons", units=tuple(range(6))),
    }
    for code, proposal in refusals.items():
        record = esper.PassManager(model).apply(proposal)
        assert (record.kind, record.code) == ("missed", code), record.line()
