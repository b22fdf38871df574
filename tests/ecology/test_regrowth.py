"""On a scar a seed may grow, once its quarantine is over; the scar closes when it commits."""

from __future__ import annotations

from typing import Literal

import torch

import esper
from esper.ecology.scars import scar_view, scars
from esper.ir.ecology import Terms
from esper.ir.model import Model
from esper.propose import AdvanceSeed, ForgetScar, Lyse, NoteProbe, PlantSeed, ProposalBase
from tests.live.training import traced

SLOT = "slot:block.out"
PLANT = PlantSeed(slot=SLOT, blueprint="mlp-small")
STAGES: tuple[Literal["blending", "holding", "committed"], ...]
STAGES = ("blending", "holding", "committed")
X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def _passes(manager: esper.PassManager, proposal: ProposalBase) -> None:
    record = manager.apply(proposal)
    assert record.kind == "passed", record.line()


def _lyse(manager: esper.PassManager, region: str) -> None:
    _passes(manager, NoteProbe(target=region, outcome="harmless", change=0.0, batches=20))
    _passes(manager, Lyse(target=region))


def _scarred() -> tuple[Model, esper.PassManager]:
    model = traced().eval()
    model.ecology.terms = Terms(quarantine=5, scar_expiry=8)
    manager = esper.PassManager(model)
    _lyse(manager, "phage:block")
    return model, manager


def test_a_seed_grows_on_a_scar_after_its_quarantine() -> None:
    model, manager = _scarred()
    assert model.anatomy.slots[SLOT].node == model.ecology.slot(SLOT).input
    model.ecology.tick = 4
    assert manager.apply(PLANT).code == "quarantine"
    model.ecology.tick = 5
    before = model(X)
    _passes(manager, PLANT)
    assert torch.equal(model(X), before)
    life = model.ecology.slot(SLOT)
    assert (life.slot_kind, life.stage, life.blueprint) == ("SCAR", "incubating", "mlp-small")
    view = scar_view(model.ecology, SLOT)
    assert view is not None
    assert (view.last_removed_blueprint, view.scar_age) == ("block", 5)
    model.ecology.tick = 50
    assert manager.apply(ForgetScar(slot=SLOT)).code == "scar-remains"


def test_a_scar_closes_when_its_seed_commits_and_opens_at_the_same_place() -> None:
    model, manager = _scarred()
    model.ecology.tick = 5
    _passes(manager, PLANT)
    for stage in STAGES:
        _passes(manager, AdvanceSeed(slot=SLOT, to=stage))
    assert scars(model.ecology) == {}
    seed = f"phage:{model.ecology.slot(SLOT).seed}"
    assert seed in model.anatomy.phages
    model.ecology.tick = 9
    _lyse(manager, seed)
    assert list(scars(model.ecology)) == [SLOT]
    view = scar_view(model.ecology, SLOT)
    assert view is not None
    assert (view.last_removed_blueprint, view.scar_age) == ("mlp-small", 0)
    aliases = [n for n in model.graph.nodes if n.target is torch.ops.aten.alias.default]
    assert [n.name for n in aliases] == [model.ecology.slot(SLOT).input]
    reference, _ = _scarred()
    assert torch.equal(model(X), reference(X))
    model.ecology.tick = 20
    _passes(manager, ForgetScar(slot=SLOT))
    assert torch.equal(model(X), reference(X))
    assert model.ecology.lives == {}
