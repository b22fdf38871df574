"""Every rule of the lifecycle's order fires, with its code and a remedy, and lets the rest pass."""

from __future__ import annotations

from typing import Any

import pytest

import esper
from esper.contracts import RULES, check
from esper.ecology import order
from esper.ir.ecology import SlotLife, Stage
from esper.ir.model import Model
from esper.propose import AdvanceSeed, Blend, CullSeed, PlantSeed
from tests.ecology.hosts import host

SLOT = "slot:layers.0.out"
PLANT = PlantSeed(slot=SLOT, blueprint="norm")
EVIDENCE: dict[str, float | int | str] = {"ticks": 12, "gradient-finite": 1, "gradient-trend": 0.9}


def life(stage: Stage, **fields: Any) -> SlotLife:
    seed = "seeds.layers.0.out.0"
    made = {"seed": seed, "blueprint": "norm", "blend": Blend(), "input": "linear_2"}
    return SlotLife(stage=stage, **{**made, **fields})


def to(stage: Any, **fields: Any) -> AdvanceSeed:
    return AdvanceSeed(slot=SLOT, to=stage, **fields)


CASES: list[tuple[str, str, SlotLife | None, Any, str]] = [
    (
        "known_slot",
        "unknown-target",
        None,
        PlantSeed(slot="slot:layers.0", blueprint="norm"),
        "slot:layers.0.out",
    ),
    ("known_slot", "unknown-target", None, CullSeed(slot="Q"), "esper inspect"),
    ("known_blueprint", "unknown-blueprint", None, PlantSeed(slot=SLOT, blueprint="nrm"), "norm"),
    ("known_blueprint", "unknown-blueprint", None, PlantSeed(slot=SLOT, blueprint="?"), "mlp-4x"),
    ("free_slot", "slot-occupied", life("incubating"), PLANT, "cull that seed"),
    ("free_slot", "slot-occupied", life("committed"), PLANT, "slot:seeds.layers.0.out.0.out"),
    ("free_slot", "quarantine", life("quarantined", quarantine_until=7), PLANT, "another slot"),
    ("stage_order", "stage-order", None, CullSeed(slot=SLOT), "plant one first"),
    ("stage_order", "stage-order", life("committed"), CullSeed(slot=SLOT), "drop-region"),
    ("stage_order", "stage-order", life("incubating"), to("holding"), "blending or"),
    ("stage_order", "stage-order", life("blending"), to("committed"), "holding or"),
    ("stage_order", "stage-order", life("holding"), to("blending"), "leads out"),
    (
        "stage_order",
        "stage-order",
        life("blending", blend=Blend(end=0)),
        to("holding"),
        "to 1 first",
    ),
    (
        "gate_criteria",
        "gate-criteria",
        life("incubating"),
        to("blending", proposer="tamiyo"),
        "measure ticks",
    ),
    (
        "gate_criteria",
        "gate-criteria",
        life("incubating"),
        to("blending", proposer="tamiyo", evidence={**EVIDENCE, "ticks": 3}),
        "wait",
    ),
]


def placed(state: SlotLife | None) -> Model:
    model = host("vectors")
    if state is not None:
        model.ecology.set(SLOT, state.model_copy(update={"input": model.anatomy.slots[SLOT].node}))
    return model


@pytest.mark.parametrize(("rule", "code", "state", "proposal", "remedy"), CASES)
def test_a_rule_fires(
    rule: str, code: str, state: SlotLife | None, proposal: Any, remedy: str
) -> None:
    model = placed(state)
    found = check(model, proposal)
    assert found is not None
    assert found.code == code
    assert found.node == proposal.slot
    assert remedy in found.remedy
    assert found == getattr(order, rule)(model, proposal)
    assert esper.propose.parse(proposal.model_dump_json()) == proposal


def test_inside_a_seed_that_blends_nothing_is_planted() -> None:
    model = placed(life("blending"))
    inside = "slot:seeds.layers.0.out.0.inside"
    model.ecology.set(inside, SlotLife(input=model.anatomy.slots[SLOT].node))
    model.anatomy.forget_parts()
    proposal = PlantSeed(slot=inside, blueprint="norm")
    found = check(model, proposal)
    assert found is not None
    assert found.code == "host-stage"
    model.ecology.set(SLOT, life("holding"))
    assert check(model, proposal) is None


def test_every_rule_of_the_order_is_in_the_contract_and_fires() -> None:
    assert set(order.RULES) <= set(RULES)
    tested = {case[0] for case in CASES} | {"steady_host"}
    assert {rule.__name__ for rule in order.RULES} == tested


@pytest.mark.parametrize(
    ("state", "proposal"),
    [
        (None, PLANT),
        (life("quarantined", quarantine_until=0), PLANT),
        (life("incubating"), AdvanceSeed(slot=SLOT, to="blending")),
        (
            life("incubating"),
            AdvanceSeed(slot=SLOT, to="blending", proposer="tamiyo", evidence=EVIDENCE),
        ),
        (life("incubating"), CullSeed(slot=SLOT)),
        (
            life("holding"),
            AdvanceSeed(slot=SLOT, to="blending", blend=Blend(start=1, end=0)),
        ),
        (life("holding"), CullSeed(slot=SLOT)),
        # Its host went: what is left can still be culled.
        (None, esper.propose.DropRegion(region="phage:layers.0")),
    ],
)
def test_the_rest_passes(state: SlotLife | None, proposal: Any) -> None:
    assert check(placed(state), proposal) is None
