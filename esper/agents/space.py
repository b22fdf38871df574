"""What an agent may do at one boundary: acts, their heads, and the exact joint mask.

An act is chosen head by head, each given what was chosen before it: `act`, then `target`, then the
act's options. A choice is allowed if something that the pass manager would plan begins with it; so
every complete decision is a legal proposal, and one that the door refuses is a bug of the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from esper.recorder.decisions import HeadMask, Mask
from esper.recorder.policy import conditional

if TYPE_CHECKING:
    from esper.live.observation import Observation
    from esper.propose import Proposal

Picks = Mapping[str, str]  # head -> what was chosen
Choices = Callable[["Observation", Picks], Sequence[str]]
ACT = "act"
WAIT = "wait"


@dataclass(frozen=True)
class Act:
    """One kind of act.

    Attributes:
        name: its choice in the head `act`.
        heads: further heads, in order, with what each may choose at all, given earlier picks.
        build: the proposal of a complete decision; None where nothing is done.
    """

    name: str
    heads: Mapping[str, Choices] = field(default_factory=dict)
    build: Callable[[Observation, Picks], Proposal] | None = None


#: Doing nothing, which every agent may at any time.
WAITING = Act(WAIT)


class Space(Mapping[str, HeadMask]):
    """The masks of all heads, each computed when it is asked for.

    Its keys are those of `esper.recorder.policy.conditional`: `act`, `target|act=plant`, ...

    Args:
        acts: of the agent; waiting is added.
        observation: of the boundary.
    """

    def __init__(self, acts: Sequence[Act], observation: Observation) -> None:
        self._acts = {act.name: act for act in (WAITING, *acts)}
        self._observation = observation
        self._masks: dict[str, HeadMask] = {}
        self._reasons: dict[str, str] = {}

    def __getitem__(self, name: str) -> HeadMask:
        """The mask of a head. Raises KeyError for one that no act has."""
        if name not in self._masks:
            head, *conditions = name.split("|")
            given = dict(condition.split("=", 1) for condition in conditions)
            self._masks[name] = self._mask(head, given)
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        """The heads that were asked for."""
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def consulted(self) -> Mask:
        """The masks that were asked for, as they are recorded."""
        return Mask(heads=dict(self._masks), reasons=dict(self._reasons))

    def proposal(self, picks: Picks) -> Proposal | None:
        """What a complete decision asks for; None for waiting."""
        build = self._acts[picks[ACT]].build
        return None if build is None else build(self._observation, picks)

    # -- masks -----------------------------------------------------------------------------------

    def _mask(self, head: str, given: Picks) -> HeadMask:
        choices = self._choices(head, given)
        rules = tuple(self._code({**given, head: choice}) for choice in choices)
        return HeadMask(choices, tuple(not rule for rule in rules), rules)

    def _choices(self, head: str, given: Picks) -> tuple[str, ...]:
        if head == ACT:
            return tuple(self._acts)
        return tuple(self._acts[given[ACT]].heads[head](self._observation, given))

    def _code(self, picks: Picks) -> str:
        """The rule because of which nothing legal begins with these picks; "" if something does."""
        act = self._acts[picks[ACT]]
        if act.build is None:
            return ""
        head = next((head for head in act.heads if head not in picks), None)
        if head is None:
            refusal = self._observation.refusal(act.build(self._observation, picks))
            if refusal is None:
                return ""
            self._reasons.setdefault(refusal.code, refusal.reason)
            return refusal.code
        first = ""
        for choice in self._choices(head, picks):
            code = self._code({**picks, head: choice})
            if not code:
                return ""
            first = first or code
        if not first:
            first = "nothing-there"
            self._reasons.setdefault(first, f"there is no {head} to {picks[ACT]}")
        return first


def following(acts: Sequence[Act], picks: Picks) -> str | None:
    """The head to choose next; None when the decision is complete."""
    if ACT not in picks:
        return ACT
    heads = next((act.heads for act in acts if act.name == picks[ACT]), {})
    return next((head for head in heads if head not in picks), None)


def key(head: str, picks: Picks) -> str:
    """The name of a head's mask given all that was chosen before it."""
    return conditional(head, picks)
