"""Lysis: only on evidence, as exact as the cuts that it is made of, and it leaves a scar."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import esper
from esper.ecology.scars import ScarView, scar_view, scars
from esper.ir.ecology import SlotLife, Terms
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.propose import (
    DropRegion,
    ForgetScar,
    GrantLease,
    Lyse,
    NoteProbe,
    ProposalBase,
    PruneUnits,
    TendLedger,
    parse,
)
from tests.live.training import traced
from tests.snapshots import assert_same, snapshot

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)
HARMLESS = NoteProbe(target="phage:block", outcome="harmless", change=0.001, error=2e-4, batches=20)
LYSE = Lyse(target="phage:block", proposer="emrakul")
SCAR = "slot:block.out"


def _lysed() -> tuple[Model, esper.PassManager]:
    model = traced().eval()
    model.ecology.terms = Terms(quarantine=5, scar_expiry=20)
    model.ecology.tick = 3
    manager = esper.PassManager(model, verify="full")
    for proposal in (HARMLESS, LYSE):
        record = manager.apply(proposal)
        assert record.kind == "passed", record.line()
    return model, manager


def test_a_region_leaves_a_scar_that_computes_nothing() -> None:
    model, _ = _lysed()
    dropped, _ = traced().eval().apply(DropRegion(region="phage:block"))
    assert torch.equal(model(X), dropped(X))
    assert "phage:block" not in model.anatomy.phages
    assert "phage:block" not in model.ecology.lives
    view = scar_view(model.ecology, SCAR)
    assert view == ScarView(
        slot_kind="SCAR",
        scar_age=0,
        last_removed_blueprint="block",
        probe_outcome_summary=(
            "harmless at tick 3: loss +0.001 (standard error 0.0002) on 20 batches"
        ),
        quarantine_remaining=5,
    )
    life = model.ecology.slot(SCAR)
    assert model.nodes[life.input].target is torch.ops.aten.alias.default
    assert life.scar is not None
    assert life.scar.figures["parameters_removed"] == 262
    model.ecology.tick = 30
    later = scar_view(model.ecology, SCAR)
    assert later is not None
    assert (later.scar_age, later.quarantine_remaining) == (27, 0)


def test_a_scar_survives_files_and_exports(tmp_path: Path) -> None:
    model, _ = _lysed()
    path = tmp_path / "scarred.esper"
    esper.save(model, path)
    loaded = esper.load(path)
    verify(loaded)
    assert torch.equal(loaded(X), model(X))
    assert scars(loaded.ecology) == scars(model.ecology)
    assert loaded.ecology.data() == model.ecology.data()
    again = torch.export.export(model, (X,))
    assert torch.equal(again.module()(X), model(X))


def test_a_scar_is_forgotten_once_it_has_expired() -> None:
    model, manager = _lysed()
    record = manager.apply(ForgetScar(slot=SCAR))
    assert (record.kind, record.code) == ("missed", "scar-remains")
    assert "0 ticks old and expires at 20" in record.reason
    model.ecology.tick = 22
    assert manager.apply(ForgetScar(slot=SCAR)).code == "scar-remains"
    model.ecology.tick = 23
    before = model(X)
    assert manager.apply(ForgetScar(slot=SCAR)).kind == "passed"
    assert torch.equal(model(X), before)
    assert model.ecology.lives == {}
    dropped, _ = traced().eval().apply(DropRegion(region="phage:block"))
    assert list(model.nodes) == list(dropped.nodes)
    assert manager.apply(ForgetScar(slot=SCAR)).code == "no-scar"


def test_a_seed_on_a_scar_keeps_it() -> None:
    model, manager = _lysed()
    model.ecology.tick = 50
    growing = model.ecology.slot(SCAR).model_copy(update={"stage": "incubating"})
    model.ecology.set(SCAR, growing)
    record = manager.apply(ForgetScar(slot=SCAR))
    assert (record.code, record.reason) == ("scar-remains", f"a seed grows on {SCAR}")


def test_a_lysed_seed_leaves_its_scar_at_its_slot_and_is_named() -> None:
    model = traced().eval()
    committed = SlotLife(stage="committed", blueprint="mlp-small", seed="block", planted=2)
    model.ecology.set("slot:stem.out", committed)
    manager = esper.PassManager(model)
    for proposal in (HARMLESS, LYSE):
        assert manager.apply(proposal).kind == "passed"
    assert list(scars(model.ecology)) == ["slot:stem.out"]
    life = model.ecology.slot("slot:stem.out")
    assert life.planted == 2
    assert life.scar is not None
    assert life.scar.last_removed_blueprint == "mlp-small"


def test_a_region_in_which_a_seed_grows_stays() -> None:
    model = traced().eval()
    inside = model.anatomy.phages["phage:block"].exit
    model.ecology.set("slot:block.out", SlotLife(stage="blending", input=inside))
    manager = esper.PassManager(model)
    assert manager.apply(HARMLESS).kind == "passed"
    before = snapshot(model)
    record = manager.apply(LYSE)
    assert (record.kind, record.code) == ("missed", "seed-inside")
    assert_same(before, snapshot(model))


def test_units_go_as_in_a_prune_and_leave_nothing_in_the_ledger() -> None:
    model = traced().eval()
    pruned, _ = model.apply(PruneUnits(axis="axis:block.0/neurons", units=(1, 4)))
    manager = esper.PassManager(model)
    axis, units = "axis:block.0/neurons", (1, 4)
    lyse = Lyse(target=axis, units=units)
    assert manager.apply(lyse).code == "no-evidence"
    note = NoteProbe(target=axis, units=units, outcome="harmless", change=0.0, batches=20)
    assert manager.apply(note).kind == "passed"
    assert set(model.ecology.lives) == {"axis:block.0/neurons[1]", "axis:block.0/neurons[4]"}
    record = manager.apply(lyse)
    assert record.kind == "passed"
    assert (record.figures["tolerance"], record.figures["units"]) == ("exact", 2)
    assert torch.equal(model(X), pruned(X))
    assert model.ecology.lives == {}


def test_everything_rolls_back_bit_for_bit() -> None:
    model = traced().eval()
    manager = esper.PassManager(model)
    before, lives = snapshot(model), model.ecology.data()
    with manager.transaction() as transaction:
        for proposal in (HARMLESS, TendLedger(), LYSE):
            manager.apply(proposal)
        assert scars(model.ecology)
        transaction.roll_back()
    assert_same(before, snapshot(model))
    assert model.ecology.data() == lives


@pytest.mark.parametrize(
    "proposal",
    [
        HARMLESS,
        LYSE,
        Lyse(target="axis:a/neurons", units=(3, 1), evidence={"gain": 0.5}),
        TendLedger(uses={"phage:block": 0.25}),
        GrantLease(target="phage:block", holder="tamiyo", until=9),
        ForgetScar(slot=SCAR),
    ],
    ids=lambda p: p.type,
)
def test_proposals_survive_json(proposal: ProposalBase) -> None:
    assert parse(proposal.model_dump_json()) == proposal


@pytest.mark.parametrize("target", ["phage:block", "axis:block.0/neurons"])
def test_units_are_named_of_axes_only(target: str) -> None:
    units = (1,) if target.startswith("phage:") else ()
    with pytest.raises(ValueError, match="units are named of an axis"):
        Lyse(target=target, units=units)
