"""Rule-based agents: tables of rules that choose among the acts which the door admits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from esper.agents.rules import Rule, Scene, Values, scores
from esper.agents.space import Act, Space, following, key
from esper.recorder import canonical
from esper.recorder.decisions import HeadMask, HeadSample
from esper.recorder.decisions import Observation as Seen
from esper.recorder.policy import chosen, sample

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal
    from esper.recorder.event import Event
    from esper.recorder.generators import Generators


@dataclass(frozen=True, kw_only=True)
class RuleAgent:
    """Base of agents that decide by a table.

    An agent remembers nothing: what it needs to know is in the model's ecology, in the losses and
    in the random streams, all of which a checkpoint of the session keeps.

    Attributes:
        every: ticks between two decisions.
        warm: losses that must be known before it does anything.
        temperature: of the choice; at 0 the highest score wins, the first of equals.
    """

    name: ClassVar[str] = ""
    rules: ClassVar[tuple[Rule, ...]] = ()
    acts: ClassVar[tuple[Act, ...]] = ()

    every: int = 20
    warm: int = 32
    temperature: float = 0.0

    def due(self, tick: int) -> bool:
        """Whether it decides at this boundary."""
        return tick > 0 and tick % self.every == 0

    def propose(self, observation: Observation) -> tuple[Proposal, ...]:
        """Decide, record the decision, and say what it asks for: one proposal or none."""
        if not self.due(observation.tick):
            return ()
        session = observation.session
        space = Space(self.acts, observation)
        samples = self.decide(observation.values, space, session.generators)
        proposal = space.proposal(chosen(samples))
        event = self._record(observation, space, samples)
        if proposal is not None:
            evidence = self._evidence(observation.values, space, samples)
            proposal = proposal.model_copy(
                update={"proposer": self.name, "evidence": {**proposal.evidence, **evidence}}
            )
        return self.carried_out(observation, proposal, event)

    def carried_out(
        self, observation: Observation, proposal: Proposal | None, cause: Event | None
    ) -> tuple[Proposal, ...]:
        """What is to be submitted of a decision; some acts are more than a proposal."""
        return () if proposal is None else (observation.because(proposal, cause),)

    def decide(
        self, values: Values, masks: Mapping[str, HeadMask], generators: Generators
    ) -> list[HeadSample]:
        """Choices of all heads, in order, from recorded data alone (`esper.recorder.policy`).

        A head whose mask is missing ends the decision: recorded masks are those of one path, and
        whoever leaves it has shown where already.
        """
        samples: list[HeadSample] = []
        picks: dict[str, str] = {}
        while (head := following(self.acts, picks)) is not None:
            mask = masks.get(key(head, picks))
            if mask is None:
                break
            scene = Scene(self, values, masks, picks)
            logits = [sum(scores(self.rules, head, scene, c).values()) for c in mask.choices]
            if self.temperature:
                logits = [logit / self.temperature for logit in logits]
            stream = self.name if self.temperature else ""
            made = sample(head, logits, mask, generators, stream=stream, given=picks)
            samples.append(made)
            picks[head] = mask.choices[made.chosen]
        return samples

    def _record(
        self, observation: Observation, space: Space, samples: Sequence[HeadSample]
    ) -> Event | None:
        """Write observation > mask > head-sample; the last event causes what is proposed."""
        recorder = observation.session.recorder
        if recorder is None:
            return None
        values = observation.values
        target = chosen(samples).get("target", "")
        seen = Seen(canonical.digest(values), values, schema_name="rows-1")
        event = recorder.event("observation", seen, agent=self.name, target=target)
        event = recorder.event("mask", space.consulted, cause=event, agent=self.name, target=target)
        for each in samples:
            event = recorder.event("head-sample", each, cause=event, agent=self.name, target=target)
        return event

    def _evidence(
        self, values: Values, space: Space, samples: Sequence[HeadSample]
    ) -> dict[str, float | int | str]:
        """Which rules spoke for what was chosen, by how much."""
        evidence: dict[str, float | int | str] = {}
        for each in samples:
            scene = Scene(self, values, space, each.given)
            choice = each.choices[each.chosen]
            evidence.update(scores(self.rules, each.head, scene, choice))
        return evidence
