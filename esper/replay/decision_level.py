"""Decision replay: recorded observations and masks go through the policies again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esper.errors import EsperError, InputError
from esper.recorder.calls import Call
from esper.recorder.decisions import HeadSample, Mask, Observation
from esper.recorder.event import Event
from esper.recorder.generators import Generators
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.recorder.policy import Policy
from esper.replay import choices, compare, platform
from esper.replay.report import Difference, Divergence, Report

#: What a policy computes; what it was given is named first when that differs.
_GIVEN = frozenset({"mask", "choices"})


def decision(log: Log, policies: Mapping[str, Policy] | None = None) -> Report:
    """Decide again whatever agents decided: logits, probabilities and choices must be the same.

    Args:
        log: of the run.
        policies: agent -> policy, for those that the log does not name, or instead of them.

    Raises:
        InputError: the log does not begin with a run, or the policy of an agent is neither given
            nor named in the log.
    """
    events = surviving(log)
    start = platform.start_of(events, log.path)
    with platform.settings_of(start):
        differs = platform.differs(log, start)
        made = _Policies(log, start.config, policies or {})
        known = {event.number: event for event in events}
        compared: Counter[str] = Counter()
        agreed: Event | None = None
        for mask, samples in _decisions(events):
            found = _again(made, known, start.seeds, mask, samples, bitwise=not differs)
            if found is not None:
                found = Divergence(found.event, found.blame, found.differences, agreed)
                return Report("decision", dict(compared), found, platform.note_of(differs))
            compared["head-sample"] += len(samples)
            agreed = samples[-1] if samples else mask
    wrong = choices.contradiction(events)
    return Report("decision", dict(compared), wrong, platform.note_of(differs))


def _decisions(events: Sequence[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Each mask with the samples that follow from it, in order."""
    effects: dict[int, list[Event]] = {}
    for event in events:
        if event.cause is not None:
            effects.setdefault(event.cause, []).append(event)
    for event in events:
        if isinstance(event.payload, Mask):
            samples: list[Event] = []
            last = event
            while True:
                below = effects.get(last.number, [])
                following = [e for e in below if isinstance(e.payload, HeadSample)]
                if not following:
                    break
                last = following[0]
                samples.append(last)
            yield event, samples


class _Policies:
    """Policies by agent, each made when it is first needed."""

    def __init__(self, log: Log, config: Mapping[str, Any], given: Mapping[str, Policy]) -> None:
        self._log = log
        self._named = config.get("policies", {})
        self._made = dict(given)

    def __getitem__(self, agent: str) -> Policy:
        if agent not in self._made:
            if agent not in self._named:
                raise InputError(
                    f"{self._log.path} names no policy for the agent {agent!r}: record the run "
                    "with Recording(agents={...}), or replay it at the level pass"
                )
            call = Call.parse(self._named[agent])
            weights = {"weights": self._log.tensors(call.weights)} if call.weights else {}
            self._made[agent] = call.resolve()(**call.arguments, **weights)
        return self._made[agent]


def _again(
    policies: _Policies,
    known: Mapping[int, Event],
    seeds: Mapping[str, int],
    mask: Event,
    samples: Sequence[Event],
    *,
    bitwise: bool,
) -> Divergence | None:
    seen = None if mask.cause is None else known.get(mask.cause)
    if seen is None or not isinstance(seen.payload, Observation):
        raise InputError(f"the mask {mask.code} follows from no observation: it cannot be replayed")
    policy = policies[mask.agent]
    generators = Generators.of_seeds({k: v for k, v in seeds.items() if k != "torch"})
    for event in reversed(samples):
        if event.payload.generator:
            generators[event.payload.generator].cursor = event.payload.cursor
    try:
        now = list(policy.decide(seen.payload.values, mask.payload.heads, generators))
    except (EsperError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        first = samples[0] if samples else mask
        text = f"{type(error).__name__}: {error}"
        return Divergence(first, "policy", (Difference("decision", "made", text),))
    for index in range(max(len(samples), len(now))):
        if index >= len(samples) or index >= len(now):
            heads = [each.head for each in now]
            event = samples[index] if index < len(samples) else (samples[-1] if samples else mask)
            before = [e.payload.head for e in samples]
            return Divergence(event, "policy", (Difference("heads", before, heads),))
        event = samples[index]
        found = compare.differences(event.kind, event.payload, now[index], bitwise=bitwise)
        if found:
            given = [difference for difference in found if difference.field in _GIVEN]
            return Divergence(event, "mask" if given else "policy", tuple(given or found))
    return None
