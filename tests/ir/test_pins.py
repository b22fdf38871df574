"""Pins keep parts whatever passes wish, and stay with copies and files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import esper
from esper.errors import UsageError
from esper.propose import DropRegion, PruneUnits
from tests import zoo
from tests.ir.small import convolutions, perceptron

NEURONS = "axis:up/neurons"


def test_a_pinned_axis_is_frozen_until_unpinned() -> None:
    model = perceptron()
    proposal = PruneUnits(axis=NEURONS, units=(0,))
    model.pin("axis:up/*")
    assert model.pins == ("axis:up/*",)
    assert not model.anatomy.axes[NEURONS].cuttable
    refusal = model.check(proposal)
    assert refusal is not None
    assert refusal.code == "frozen-axis"
    assert refusal.reason == "axis:up/neurons is frozen: pinned by the user (axis:up/*)"
    assert refusal.remedy == "take the pin back with Model.unpin"
    model.unpin("axis:up/*")
    assert model.check(proposal) is None


def test_a_pinned_region_stays() -> None:
    model, _, _ = zoo.traced("bert")
    region = next(r for r in model.anatomy.phages.values() if r.bypassable)
    model.pin(region.id)
    refusal = model.check(DropRegion(region=region.id))
    assert refusal is not None
    assert refusal.code == "not-bypassable"
    assert "pinned by the user" in refusal.reason
    assert refusal.remedy == "take the pin back with Model.unpin"


def test_what_an_op_freezes_keeps_its_reason() -> None:
    model = convolutions()
    before = {a.id: a.frozen_reason for a in model.anatomy.axes.values()}
    model.pin("*")
    for axis in model.anatomy.axes.values():
        assert axis.frozen_reason == (before[axis.id] or "pinned by the user (*)")


def test_pins_stay_with_copies_files_and_rewrites(tmp_path: Path) -> None:
    model = convolutions()
    model.pin("axis:conv/*")
    esper.save(model, tmp_path / "model.esper")
    loaded = esper.load(tmp_path / "model.esper")
    for each in (copy.deepcopy(model), loaded):
        assert each.pins == ("axis:conv/*",)
        assert not each.anatomy.axes["axis:conv/channels"].cuttable
        each.unpin("axis:conv/*")
    result = esper.optimize(model, "fuse-conv-bn,prune{axes=channels ratio=0.5 align=1}")
    assert result.model.pins == ("axis:conv/*",)
    assert result.model.anatomy.axes["axis:conv/channels"].size == 4
    assert model.pins == ("axis:conv/*",)


def test_a_pin_that_matches_nothing_is_an_error() -> None:
    model = perceptron()
    with pytest.raises(UsageError, match=r"matches 'axis:upp/neurons'; did you mean axis:up/neur"):
        model.pin("axis:upp/neurons")
    with pytest.raises(UsageError, match="`esper inspect` lists the parts"):
        model.pin("???")
    with pytest.raises(UsageError, match="there is no pin 'x'"):
        model.unpin("x")
