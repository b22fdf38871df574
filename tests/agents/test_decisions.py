"""Decisions: recorded as a chain, made again from the record, and the same after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.agents.agent import RuleAgent
from esper.live.checkpoint import copied
from esper.recorder.decisions import HeadSample, Mask, Observation
from esper.recorder.event import Event
from esper.recorder.generators import Generators
from esper.recorder.log import Log
from esper.recorder.policy import Policy
from tests.agents.toys import Gambler, session, train


def _chains(log: Log) -> list[list[Event]]:
    """Observation > mask > head-samples, by decision."""
    chains = []
    for event in log:
        if event.kind == "observation":
            chain = [event]
            while chain[-1].kind != "head-sample" or any(
                e.kind == "head-sample" for e in log.effects(chain[-1])
            ):
                chain.append(log.effects(chain[-1])[0])
            chains.append(chain)
    return chains


def _recorded(path: Path, **options: Any) -> tuple[Log, list[dict[str, Any]]]:
    run, data = session(recorder=path, generators=Generators(5))
    made = train(run, Gambler(every=2, **options), 12, data)
    run.close()
    return Log(path), made


def test_each_proposal_has_its_whole_chain(tmp_path: Path) -> None:
    log, made = _recorded(tmp_path / "run.esperlog")
    proposals = [event for event in log if event.kind == "proposal"]
    assert [event.payload.proposal for event in proposals] == made
    assert len(made) >= 3
    for event in proposals:
        kinds = [cause.kind for cause in log.causes(event)]
        assert kinds[:2] == ["observation", "mask"]
        assert set(kinds[2:-1]) == {"head-sample"}
        assert {cause.agent for cause in log.causes(event)} == {"gambler"}
        (config,) = log.effects(event)
        assert [e.kind for e in log.effects(config)] == ["verdict"]


def test_decisions_are_made_again_from_the_record(tmp_path: Path) -> None:
    log, _ = _recorded(tmp_path / "run.esperlog")
    agent = Gambler(every=2)
    assert isinstance(agent, Policy)
    for seen, mask, *samples in _chains(log):
        assert isinstance(seen.payload, Observation)
        assert isinstance(mask.payload, Mask)
        recorded = [event.payload for event in samples]
        assert all(isinstance(sample, HeadSample) for sample in recorded)
        generators = Generators(5)
        generators["gambler"].cursor = recorded[0].cursor
        again = agent.decide(seen.payload.values, mask.payload.heads, generators)
        assert again == recorded


def test_another_temper_is_seen_in_the_first_logits(tmp_path: Path) -> None:
    """Where a policy leaves the recorded path it stops: the masks there are not known."""
    log, _ = _recorded(tmp_path / "run.esperlog")
    for seen, mask, *samples in _chains(log):
        again = Gambler(temperature=0.5).decide(
            seen.payload.values, mask.payload.heads, Generators(77)
        )
        assert again[0].logits != samples[0].payload.logits
        assert [s.head for s in again] == [e.payload.head for e in samples][: len(again)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_resumed_run_decides_the_same(temperature: float) -> None:
    agent: RuleAgent = Gambler(every=2, temperature=temperature)
    run, data = session(generators=Generators(9))
    train(run, agent, 5, data)
    state, place = copied(run.state_dict()), data.get_state()
    whole = train(run, agent, 8, data)
    other, other_data = session(generators=Generators(9))
    other.load_state_dict(state)
    other_data.set_state(place)
    assert train(other, agent, 8, other_data) == whole
    assert len(whole) >= 2


def test_evidence_names_the_rules_that_spoke() -> None:
    run, data = session()
    made = train(run, Gambler(temperature=0.0), 3, data)
    assert any(proposal["evidence"] == {"first": 1.0} for proposal in made)
