"""Decision rules: small tables whose scores are the logits of heads.

A rule adds a number to the logit of a choice, given what is seen. So rules and learned policies go
the same way: logits, mask, sample, record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper.agents.space import Picks, key
from esper.recorder.decisions import HeadMask

Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Scene:
    """What a rule looks at.

    Attributes:
        options: of the agent: the agent itself.
        values: of the observation.
        masks: of all heads.
        picks: what was chosen before.
    """

    options: Any
    values: Values
    masks: Mapping[str, HeadMask]
    picks: Picks

    def figure(self, part: str, name: str) -> float:
        """One figure; 0 where it is absent."""
        return float(self.values.get(part, {}).get(name, 0.0))

    def allowed(self, head: str, **given: str) -> list[str]:
        """What a head may choose, were this chosen before."""
        mask = self.masks.get(key(head, given))
        if mask is None:
            return []
        return [choice for choice, ok in zip(mask.choices, mask.allowed, strict=True) if ok]


@dataclass(frozen=True)
class Rule:
    """One line of an agent's table.

    Attributes:
        name: unique in the table; scores are recorded under it.
        head: whose logits it moves.
        text: when and how, in a sentence.
        score: what it adds to the logit of a choice.
    """

    name: str
    head: str
    text: str
    score: Callable[[Scene, str], float]


def scores(rules: Sequence[Rule], head: str, scene: Scene, choice: str) -> dict[str, float]:
    """What each rule for a head adds to one choice, without those that add nothing."""
    found = {rule.name: rule.score(scene, choice) for rule in rules if rule.head == head}
    return {name: score for name, score in found.items() if score}


def table(rules: Sequence[Rule]) -> str:
    """The rules as lines of text: head, name, sentence."""
    wide = max(len(rule.name) for rule in rules)
    return "\n".join(f"{rule.head:<9} {rule.name:<{wide}}  {rule.text}" for rule in rules)
