"""Masks are what the door refuses: no more, no less, and with the door's own codes."""

from __future__ import annotations

import copy

import esper
from esper.agents.space import Space
from esper.plan import Plan, Refusal
from esper.propose import ProposalBase, PruneUnits
from tests.agents.toys import ACTS, Gambler, admitted, every_decision, session, train
from tests.live.training import batch, step


def test_masks_equal_what_the_door_refuses() -> None:
    """Over a run at random: each possible decision is admitted exactly if it would be applied."""
    run, data = session()
    agent = Gambler(every=3)
    seen = {True: 0, False: 0}
    for _ in range(4):
        train(run, agent, 3, data)
        with run.boundary() as boundary:
            observation = boundary.observation
            space = Space(ACTS, observation)
            trial = esper.PassManager(copy.deepcopy(run.model), verify="none")
            for picks in every_decision(ACTS, observation):
                proposal = space.proposal(picks)
                legal = admitted(space, ACTS, picks)
                seen[legal] += 1
                if proposal is None:
                    assert legal
                    continue
                with trial.transaction() as transaction:
                    assert (trial.apply(proposal).kind == "passed") == legal, proposal
                    transaction.roll_back()
    assert min(seen.values()) > 20


def test_masked_choices_carry_the_codes_of_rules() -> None:
    run, _ = session()
    with run.boundary() as boundary:
        space = Space(ACTS, boundary.observation)
        targets = space["target|act=cut"]
        rules = dict(zip(targets.choices, targets.rules, strict=True))
        assert rules["axis:nowhere/neurons"] == "unknown-target"
        assert rules["axis:head/neurons"] == "frozen-axis"
        units = space["unit|act=cut|target=axis:block.0/neurons"]
        assert units.rules == ("", "", "unknown-unit")
        inits = space["init|act=widen|target=axis:block.0/neurons"]
        assert inits.rules == ("", "", "missing-payload")
        recorded = space.consulted
    assert set(recorded.heads) == set(space)
    assert set(recorded.reasons) >= {"unknown-target", "frozen-axis", "unknown-unit"}


def test_an_act_without_a_target_is_masked() -> None:
    run, _ = session()
    model = run.model
    with run.boundary() as boundary:
        for phage in list(model.anatomy.phages):
            boundary.submit(esper.propose.DropRegion(region=phage))
    with run.boundary() as boundary:
        acts = Space(ACTS, boundary.observation)["act"]
        assert dict(zip(acts.choices, acts.rules, strict=True))["drop"] == "nothing-there"


def test_refusals_are_asked_for_once_and_follow_every_change() -> None:
    run, data = session()
    proposal = PruneUnits(axis="axis:block.0/neurons", units=(3,))
    asked: list[ProposalBase] = []
    plan = run.manager.plan

    def counted(proposal: ProposalBase) -> Plan | Refusal:
        asked.append(proposal)
        return plan(proposal)

    run.manager.plan = counted  # type: ignore[method-assign]
    for _ in range(3):
        with run.boundary(step(run.model, run.optimizer, batch(data))) as boundary:
            assert boundary.observation.refusal(proposal) is None
    assert len(asked) == 1
    with run.boundary() as boundary:
        boundary.submit(proposal)
        refusal = boundary.observation.refusal(proposal)
    assert refusal is not None
    assert refusal.code == "unknown-unit"
    try:
        with run.boundary() as boundary:
            boundary.submit(PruneUnits(axis="axis:block.0/neurons", units=(4,)))
            raise KeyError
    except KeyError:
        pass
    other = PruneUnits(axis="axis:block.0/neurons", units=(4,))
    with run.boundary() as boundary:
        assert boundary.observation.refusal(other) is None


def test_nothing_is_computed_for_nobody() -> None:
    run, _ = session()
    agent = Gambler(every=5)
    with run.boundary() as boundary:
        observation = boundary.observation
        assert agent.propose(observation) == ()
        assert not vars(observation).keys() & {"rows", "values"}
