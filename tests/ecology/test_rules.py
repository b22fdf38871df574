"""Every rule against oscillation fires, and does not where it just does not apply."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import nn

import esper
from esper import propose
from esper.contracts import RULES, check
from esper.ecology import events, ledger, rules
from esper.ecology.blast import blast_radius, smallest_first
from esper.ir.ecology import Antibody, Ecology, Finding, Immunity, Scar, SlotLife, Terms
from esper.ir.model import Model
from esper.propose import (
    DropRegion,
    GrantLease,
    Lyse,
    NoteProbe,
    PlantSeed,
    ProposalBase,
    PruneUnits,
    Sedate,
    TendLedger,
    WidenUnits,
)
from tests.live.training import traced
from tests.snapshots import assert_same, snapshot

REGION = "phage:block"
NEURONS = "axis:block.0/neurons"
SCARRED = SlotLife(
    slot_kind="SCAR",
    stage="quarantined",
    quarantine_until=12,
    scar=Scar(since=2, last_removed_blueprint="x", probe_outcome_summary=""),
)
HARMLESS = Finding(tick=8, outcome="harmless", change=0.0, batches=20)
PAIR = HARMLESS.model_copy(update={"units": (1, 2)})


@cache
def _traced() -> Model:
    return traced().eval()


def _model() -> Model:
    return copy.deepcopy(_traced())


@dataclass(frozen=True)
class Case:
    """`lives` at tick 10 forbid `proposal`; `but` changes one thing, and they do not."""

    rule: str
    code: str
    proposal: ProposalBase
    lives: dict[str, Immunity | SlotLife]
    reason: str
    but: Callable[[Ecology], None] | ProposalBase
    terms: Terms = field(default_factory=Terms)

    def __str__(self) -> str:
        return f"{self.code} {self.proposal.type}"


def _tick(tick: int) -> Callable[[Ecology], None]:
    def later(ecology: Ecology) -> None:
        ecology.tick = tick

    return later


def _terms(**terms: float) -> Callable[[Ecology], None]:
    def other(ecology: Ecology) -> None:
        ecology.terms = ecology.terms.model_copy(update=terms)

    return other


def _found(*findings: Finding) -> Immunity:
    return Immunity(probes=findings)


CUT = PruneUnits(axis=NEURONS, units=(1, 2))
DROP = DropRegion(region=REGION)
LYSE = Lyse(target=REGION)
HARM = (Antibody(tick=10, harm=1.0, half_life=5.0, against="prune-units"),)

CASES = (
    Case(
        "leased",
        "leased",
        CUT,
        {NEURONS: Immunity(lease_holder="tamiyo", lease_until=11)},
        "leased to tamiyo until tick 11",
        _tick(11),
    ),
    Case(
        "leased",
        "leased",
        CUT,
        {f"{NEURONS}[2]": Immunity(lease_holder="tamiyo", lease_until=11)},
        "leased to tamiyo",
        CUT.model_copy(update={"proposer": "tamiyo"}),
    ),
    Case(
        "leased",
        "leased",
        GrantLease(target=NEURONS, holder="emrakul", until=30),
        {NEURONS: Immunity(lease_holder="tamiyo", lease_until=11)},
        "leased to tamiyo",
        GrantLease(target=NEURONS, holder="tamiyo", until=30),
    ),
    Case(
        "free_slot",
        "quarantine",
        PlantSeed(slot="slot:block.out", blueprint="no-op"),
        {"slot:block.out": SCARRED},
        "rests for 2 more ticks",
        _tick(12),
    ),
    Case(
        "cooldown",
        "cooldown",
        CUT,
        {NEURONS: Immunity(cooldown_until=11)},
        "rests until tick 11",
        _tick(11),
    ),
    Case(
        "cooldown",
        "cooldown",
        WidenUnits(axis=NEURONS, count=1),
        {NEURONS: Immunity(cooldown_until=11)},
        "rests",
        Sedate(target=NEURONS, units=(1,)),  # looking is no change
    ),
    Case(
        "critical",
        "critical",
        DROP,
        {REGION: Immunity(critical_until=15)},
        "locked until tick 15",
        _tick(15),
    ),
    Case(
        "critical",
        "critical",
        Sedate(target=NEURONS, units=(0, 3)),
        {f"{NEURONS}[3]": Immunity(critical_until=15)},
        "block.0/neurons[3] is locked",
        Sedate(target=NEURONS, units=(0, 2)),
    ),
    Case(
        "critical",
        "critical",
        CUT,
        {NEURONS: Immunity(critical_until=15)},
        "critical",
        WidenUnits(axis=NEURONS, count=1),  # what is needed may grow
    ),
    Case(
        "antibodies",
        "antibodies",
        CUT,
        {f"{NEURONS}[1]": Immunity(antibodies=HARM)},
        "prune-units did harm",
        _tick(16),
    ),
    Case(
        "antibodies",
        "antibodies",
        CUT,
        {f"{NEURONS}[1]": Immunity(antibodies=HARM)},
        "its antibodies weigh 1.00, and 0.5 is too much",
        PruneUnits(axis=NEURONS, units=(2, 3)),
    ),
    Case(
        "rent_due",
        "rent-due",
        WidenUnits(axis=NEURONS, count=2),
        {REGION: Immunity(debt=1.0)},
        "owes 1 of rent",
        _terms(debt_limit=1.5),
    ),
    Case(
        "rent_due",
        "rent-due",
        PlantSeed(slot="slot:block.out", blueprint="no-op"),
        {REGION: Immunity(debt=3.0)},
        f"{REGION} owes 3",
        WidenUnits(axis="axis:stem/neurons", count=1),  # that lies elsewhere
    ),
    Case(
        "scar_cap",
        "scar-cap",
        LYSE,
        {"slot:a.out": SCARRED, REGION: _found(HARMLESS)},
        "bears 1 scars",
        _terms(scars=2),
        Terms(scars=1),
    ),
    Case(
        "no_evidence",
        "no-evidence",
        LYSE,
        {REGION: _found(HARMLESS.model_copy(update={"batches": 7}))},
        "on 8 batches: harmless at tick 8",
        _terms(evidence_batches=7),
    ),
    Case(
        "no_evidence",
        "no-evidence",
        Lyse(target=NEURONS, units=(2, 1)),
        {f"{NEURONS}[1]": _found(PAIR)},
        "no harmless probe of exactly this part",
        lambda ecology: ecology.set(f"{NEURONS}[2]", _found(PAIR)),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_fires_and_nearly_does(case: Case) -> None:
    model = _model()
    model.ecology = Ecology(case.lives, 10, case.terms)
    before = snapshot(model)
    refusal = check(model, case.proposal)
    assert refusal is not None
    assert refusal.code == case.code
    assert case.reason in refusal.reason
    first = next(rule.__name__ for rule in RULES if rule(model, case.proposal) is not None)
    assert first == case.rule
    record = esper.PassManager(model).apply(case.proposal)
    assert (record.kind, record.code) == ("missed", case.code)
    assert_same(before, snapshot(model))
    proposal = case.proposal
    if isinstance(case.but, ProposalBase):
        proposal = case.but
    else:
        case.but(model.ecology)
    assert check(model, proposal) is None


class Nested(nn.Module):
    """A region in a region."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
        self.outer = nn.Sequential(nn.Linear(4, 4), inner, nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two numbers."""
        out: torch.Tensor = self.head(self.outer(x))
        return out


def test_with_a_region_go_the_regions_inside_it() -> None:
    model = esper.trace(Nested().eval(), (torch.randn(3, 4),))
    inner, outer = "phage:outer.1", "phage:outer"
    assert set(model.anatomy.phages[inner].nodes) < set(model.anatomy.phages[outer].nodes)
    model.ecology.set(inner, Immunity(critical_until=5))
    refusal = check(model, DropRegion(region=outer))
    assert refusal is not None
    assert (refusal.code, refusal.node) == ("critical", inner)
    model.ecology.lives.clear()
    model.ecology.set(outer, Immunity(critical_until=5))
    assert check(model, DropRegion(region=inner)) is None


def test_a_model_of_which_nothing_is_written_is_refused_nothing_else() -> None:
    model = _model()
    for proposal in (CUT, DROP, Sedate(target=REGION), WidenUnits(axis=NEURONS, count=1)):
        assert check(model, proposal) is None
    refusal = check(model, LYSE)
    assert refusal is not None
    assert refusal.code == "no-evidence"


def test_a_finding_is_of_something_that_lives() -> None:
    model = _model()
    for target, units, code in (
        ("phage:nowhere", (), "unknown-target"),
        (NEURONS, (99,), "unknown-unit"),
    ):
        note = NoteProbe(target=target, units=units, outcome="harmless", change=0.0, batches=1)
        refusal = check(model, note)
        assert refusal is not None
        assert refusal.code == code
    for proposal in (
        GrantLease(target="phage:nowhere", holder="tamiyo", until=3),
        TendLedger(uses={"phage:nowhere": 1.0}),
    ):
        assert esper.PassManager(model).apply(proposal).code == "unknown-target"


def test_the_tables_name_what_there_is() -> None:
    known = set(propose._BUILT_IN)
    for table in (ledger._HARMLESS, ledger._GOES_ON, rules._FREE, rules._REMOVALS, rules._GROWTH):
        assert set(table) <= known
    assert set(events.KINDS) - known == {"other", "rollback"}


def test_after_a_change_its_target_rests() -> None:
    model = _model()
    model.ecology = Ecology(tick=4, terms=Terms(cooldown=3))
    manager = esper.PassManager(model)
    assert manager.apply(PruneUnits(axis=NEURONS, units=(1,))).kind == "passed"
    assert model.ecology.immunity(NEURONS).cooldown_until == 7
    again = PruneUnits(axis=NEURONS, units=(2,))
    assert manager.apply(again).code == "cooldown"
    note = NoteProbe(target=NEURONS, units=(2,), outcome="harmless", change=0.0, batches=9)
    assert manager.apply(note).kind == "passed"  # writing about it needs no rest
    model.ecology.tick = 7
    assert manager.apply(again).kind == "passed"


def test_the_ledger_is_brought_up_to_date() -> None:
    model = _model()
    model.ecology = Ecology(tick=10, terms=Terms(parameter_price=0.1, flop_price=0.1))
    manager = esper.PassManager(model)
    model.ecology.set("slot:gone.out", SCARRED)
    model.ecology.set(f"{NEURONS}[1]", Immunity(critical_until=3))
    record = manager.apply(TendLedger())
    assert record.kind == "passed"
    region = model.ecology.immunity(REGION)
    assert region.debt > 0
    assert region.settled == 10
    assert f"{NEURONS}[1]" not in model.ecology.lives
    scar = model.ecology.immunity("slot:gone.out")
    assert scar.debt == pytest.approx(0.001 * 8 / 200 * 8)
    assert record.figures["debt"] == pytest.approx(
        sum(page.debt for page in model.ecology.pages().values())
    )
    assert manager.apply(TendLedger()).code == "no-change"
    model.ecology.tick = 20
    assert manager.apply(TendLedger(uses={REGION: 1.0})).kind == "passed"
    assert model.ecology.immunity(REGION).debt == 0.0  # use pays


def test_smaller_changes_go_first_where_gains_agree() -> None:
    model = _model()
    few = PruneUnits(axis=NEURONS, units=(1,), evidence={"gain": 0.50001})
    many = PruneUnits(axis=NEURONS, units=(1, 2, 3), evidence={"gain": 0.5})
    region = DropRegion(region=REGION, evidence={"gain": 0.5})
    better = DropRegion(region=REGION, evidence={"gain": 0.6})
    radii = [blast_radius(model, p) for p in (few, many, region)]
    assert radii == sorted(radii)
    assert radii[0] > 0
    assert blast_radius(model, GrantLease(target="slot:block.out", holder="a", until=1)) == 0
    assert smallest_first(model, [region, many, better, few]) == [better, few, many, region]
