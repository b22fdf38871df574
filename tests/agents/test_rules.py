"""Each rule of each table speaks where its text says so, and is silent beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from esper.agents import Emrakul, RuleAgent, Tamiyo, decay_rules, growth_rules
from esper.agents.rules import Scene, scores, table
from esper.recorder.decisions import HeadMask
from esper.recorder.generators import Generators
from esper.recorder.policy import chosen

Values = Mapping[str, Mapping[str, float]]
S, T = "slot:a.out", "slot:b.out"
P, Q = "phage:a", "phage:b"
INNER = f"{P}.inner"
U = "axis:a/neurons[3,7]"
FLAT = {"count": 64.0, "level": 1.0, "change": 0.0, "noise": 0.1}


def _mask(*allowed: str, never: tuple[str, ...] = ()) -> HeadMask:
    flags = (*(True for _ in allowed), *(False for _ in never))
    return HeadMask((*allowed, *never), flags, tuple("" if ok else "cooldown" for ok in flags))


@dataclass(frozen=True)
class Case:
    """A choice that the rule scores, and values that differ a little and leave it silent."""

    choice: str
    score: float
    values: Values
    silent: Values | None = None
    picks: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, HeadMask] = field(default_factory=dict)
    otherwise: str | None = None  # a choice that the rule does not score with the same values


PLANT = {"act": "plant"}
AIMED = {"act": "plant", "target": S}
PLANTABLE = {"target|act=plant": _mask(S, T)}
TAMIYO: dict[str, Case] = {
    "wait": Case("wait", 1.0, {}, otherwise="plant"),
    "plateau": Case("plant", 2.0, {"loss": FLAT}, {"loss": {**FLAT, "change": -0.2}}),
    "busy": Case("plant", -4.0, {"run": {"blending": 1.0}}, {"run": {}}),
    "budget": Case("widen", -4.0, {"run": {"parameters": 500.0}}, {"run": {"parameters": 499.0}}),
    "turns": Case("plant", 0.5, {}, {S: {"planted": 1.0}, T: {"planted": 1.0}}, masks=PLANTABLE),
    "steepest": Case(S, 4.0, {S: {"gradient": 10.0}}, {S: {}}, PLANT),
    "fresh": Case(S, -4.0, {S: {"planted": 2.0}}, {S: {"planted": 0.0}}, PLANT),
    "scar": Case(
        S,
        8.0,
        {S: {"scar": 1.0, "scar_change": 0.1}},
        {S: {"scar_change": 0.1}},
        PLANT,
    ),
    "suited": Case("conv-light", 1.0, {S: {"dims": 4.0}}, {S: {"dims": 3.0}}, AIMED),
    "preferred": Case("my-own", 4.0, {}, picks=AIMED, otherwise="conv-medium"),
    "proved": Case(
        "attention",
        -0.5,
        {S: {"committed": 1.0, "blueprint.attention": 1.0}, T: {"culled.attention": 1.0}},
        {S: {"holding": 1.0, "blueprint.attention": 1.0}},
        AIMED,
    ),
    "control": Case("no-op", -8.0, {}, picks=AIMED, otherwise="norm"),
    "other": Case(
        "attention", -4.0, {S: {"culled.attention": 1.0}}, {T: {"culled.attention": 1.0}}, AIMED
    ),
    "gentle": Case("gated", 1.0, {"loss": {"noise": 0.9}}, {"loss": {"noise": 0.1}}, AIMED),
    "modest": Case("half", 1.0, {}, otherwise="double"),
    "pace": Case("long", 1.0, {"loss": {"noise": 0.9}}, {"loss": {"noise": 0.1}}, AIMED),
}

PROBEABLE = {"target|act=probe": _mask(P, Q)}
REMOVABLE = {"target|act=lyse": _mask(P, never=(Q,))}
NESTED = {"target|act=probe": _mask(P, INNER)}
WEIGHABLE = {"target|act=weigh": _mask(U)}
HARMLESS = {"probes": 1.0, "found_age": 3.0, "found.harmless": 1.0}
HARMFUL = {"probes": 1.0, "found_age": 3.0, "found.harmful": 1.0}
EMRAKUL: dict[str, Case] = {
    "wait": Case("wait", 1.0, {}, otherwise="lyse"),
    "calm": Case("lyse", -4.0, {"loss": {**FLAT, "change": 0.2}}, {"loss": FLAT}),
    "settled": Case("probe", -4.0, {"run": {"holding": 1.0}}, {"run": {}}),
    "young": Case("probe", -4.0, {"loss": {"change": -0.2}}, {"loss": {"change": -0.05}}),
    "curious": Case("probe", 2.0, {P: HARMLESS, Q: {}}, {P: HARMLESS, Q: HARMFUL}, {}, PROBEABLE),
    "fine": Case("weigh", 1.5, {}, {U: HARMLESS}, {}, WEIGHABLE),
    "proven": Case("lyse", 3.0, {P: HARMLESS}, {P: HARMFUL, Q: HARMLESS}, {}, REMOVABLE),
    "expired": Case("forget", 1.5, {}, masks={"target|act=forget": _mask(S)}, otherwise="lyse"),
    "evidence": Case(P, -10.0, {P: HARMLESS}, {P: {}}, {"act": "probe"}),
    "parts": Case(P, -4.0, {}, {INNER: HARMFUL}, {"act": "probe"}, NESTED, otherwise=INNER),
    "rent": Case(
        P, 1.0, {P: {"debt": 2.0}, Q: {"debt": 4.0}}, {P: {}}, {"act": "probe"}, PROBEABLE
    ),
    "missed": Case(
        P, -0.5, {P: {"saliency": 1.0}, Q: {"saliency": 4.0}}, {P: {}}, {"act": "probe"}, PROBEABLE
    ),
    "small": Case(P, -3.0, {P: {"parameters": 999.0}}, {P: {}}, {"act": "probe"}),
    "cheap": Case(P, -1.0, {P: {"probes": 2.0}}, {P: {}}, {"act": "probe"}),
    "harm": Case(P, -0.7, {P: {"harm": 0.7}}, {P: {}}, {"act": "probe"}),
}

AGENTS: dict[str, tuple[RuleAgent, dict[str, Case]]] = {
    "tamiyo": (Tamiyo(budget=500, prefer=("my-own",)), TAMIYO),
    "emrakul": (Emrakul(), EMRAKUL),
}
ROWS = [(agent, rule.name) for agent, (made, _) in AGENTS.items() for rule in made.rules]


@pytest.mark.parametrize(("name", "rule"), ROWS)
def test_each_rule_fires(name: str, rule: str) -> None:
    agent, cases = AGENTS[name]
    case = cases[rule]
    head = next(r.head for r in agent.rules if r.name == rule)

    def score(values: Values, choice: str) -> float:
        scene = Scene(agent, values, case.masks, case.picks)
        return scores(agent.rules, head, scene, choice).get(rule, 0.0)

    assert score(case.values, case.choice) == pytest.approx(case.score)
    if case.silent is not None:
        assert score(case.silent, case.choice) == 0.0
    if case.otherwise is not None:
        assert score(case.values, case.otherwise) == 0.0
    assert case.silent is not None or case.otherwise is not None


def test_removing_on_other_evidence_is_the_worst_choice() -> None:
    for act in ("lyse", "trim"):
        scene = Scene(Emrakul(), {P: HARMFUL, Q: HARMLESS}, {}, {"act": act})
        assert scores(decay_rules.RULES, "target", scene, P)["evidence"] == -10.0
        assert "evidence" not in scores(decay_rules.RULES, "target", scene, Q)


def test_what_is_proven_goes_first_be_it_a_region_or_units() -> None:
    masks = {
        "target|act=lyse": _mask(P),
        "target|act=trim": _mask(U),
        "target|act=probe": _mask(Q),
    }
    scene = Scene(Emrakul(), {"loss": FLAT, U: HARMLESS}, masks, {})
    said = {
        act: scores(decay_rules.RULES, "act", scene, act)
        for act in ("lyse", "trim", "probe", "weigh")
    }
    assert said == {"lyse": {}, "trim": {"proven": 3.0}, "probe": {"curious": 2.0}, "weigh": {}}


def test_tables_read_as_text() -> None:
    for agent, _ in AGENTS.values():
        lines = table(agent.rules).splitlines()
        assert len(lines) == len({rule.name for rule in agent.rules}) == len(agent.rules)


# -- whole decisions -------------------------------------------------------------------------------


def _decided(agent: RuleAgent, values: Values, masks: Mapping[str, HeadMask]) -> dict[str, str]:
    return chosen(agent.decide(values, masks, Generators()))


def test_tamiyo_plants_at_the_steepest_slot_that_is_free() -> None:
    values = {
        "loss": FLAT,
        S: {"gradient": 3.0, "dims": 4.0},
        T: {"gradient": 0.1, "dims": 4.0},
        "slot:c.out": {"gradient": 9.0},
    }
    masks = {
        "act": _mask("wait", "plant", "widen"),
        "target|act=plant": _mask(S, T, never=("slot:c.out",)),
        f"blueprint|act=plant|target={S}": _mask(*growth_rules.SUITED[4]),
        f"blend|act=plant|blueprint=conv-medium|target={S}": _mask("add", "multiply", "gated"),
        f"tempo|act=plant|blend=add|blueprint=conv-medium|target={S}": _mask("short", "standard"),
    }
    assert _decided(Tamiyo(), values, masks) == {
        "act": "plant",
        "target": S,
        "blueprint": "conv-medium",
        "blend": "add",
        "tempo": "standard",
    }
    falling = {**values, "loss": {**FLAT, "change": -0.3}}
    assert _decided(Tamiyo(), falling, masks) == {"act": "wait"}


def test_emrakul_goes_for_rent_and_the_smaller_of_equals() -> None:
    masks = {
        "act": _mask("wait", "probe", never=("lyse", "forget")),
        "target|act=probe": _mask(P, Q),
        "target|act=lyse": _mask(never=(P, Q)),
        "target|act=forget": _mask(),
    }
    equal = {"loss": FLAT, P: {"parameters": 900.0}, Q: {"parameters": 100.0}}
    assert _decided(Emrakul(), equal, masks) == {"act": "probe", "target": Q}
    dear = {**equal, P: {"parameters": 900.0, "debt": 5.0}}
    assert _decided(Emrakul(), dear, masks) == {"act": "probe", "target": P}
    known = {**equal, P: {**equal[P], **HARMFUL}, Q: {**equal[Q], **HARMFUL}}
    assert _decided(Emrakul(), known, masks) == {"act": "wait"}
