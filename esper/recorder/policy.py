"""Policies whose decisions can be made again from what was recorded, and how heads are sampled.

A policy is a pure function of observation values, masks and random streams. Whatever else it knows
(weights, options) is fixed by the `Call` that made it, and what it remembers is among the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from esper.errors import UsageError
from esper.recorder import canonical
from esper.recorder.decisions import HeadMask, HeadSample, Mask, Observation
from esper.recorder.generators import Generators
from esper.recorder.payload import Plain

if TYPE_CHECKING:
    from esper.recorder.event import Event
    from esper.recorder.taker import EventTaker

Masks = Mapping[str, HeadMask]


@runtime_checkable
class Policy(Protocol):
    """What decides."""

    def decide(self, values: Plain, masks: Masks, generators: Generators) -> Sequence[HeadSample]:
        """Choices of all heads, in the order in which they were made.

        Args:
            values: of the observation, by name, as `Observation.values` keeps them.
            masks: what each head may choose; `mask_of` finds that of a head.
            generators: the only source of chance.
        """
        ...


def conditional(head: str, given: Mapping[str, str]) -> str:
    """Name, within a `Mask`, of a head's mask where earlier heads chose so: `slot|op=plant`."""
    return head + "".join(f"|{name}={choice}" for name, choice in sorted(given.items()))


def mask_of(masks: Masks, head: str, given: Mapping[str, str] | None = None) -> HeadMask:
    """The mask of a head: the one for most of what earlier heads chose, or its only one.

    Raises:
        UsageError: the head has no mask.
    """
    chosen = dict(given or {})
    for name in sorted(masks, key=lambda name: (-name.count("|"), name)):
        own, *conditions = name.split("|")
        pairs = (condition.partition("=") for condition in conditions)
        if own == head and all(chosen.get(key) == value for key, _, value in pairs):
            return masks[name]
    raise UsageError(f"there is no mask for head {head!r}: each head needs one")


def sample(
    head: str,
    logits: Sequence[float],
    mask: HeadMask,
    generators: Generators,
    *,
    stream: str = "",
    given: Mapping[str, str] | None = None,
) -> HeadSample:
    """Choose from a masked categorical distribution.

    A head with a single allowed choice draws all the same, so that the cursors of a stream do not
    depend on masks. Computed in float64 without libraries, so equal logits give equal choices on
    every platform whose exponential is correctly rounded.

    Args:
        head: its name.
        logits: one per choice, finite; those of masked choices have no effect.
        mask: what may be chosen.
        generators: the run's.
        stream: name of the stream to draw from; "" takes the likeliest choice, the first of equals.
        given: what earlier heads chose.

    Raises:
        UsageError: nothing is allowed, a logit is not finite, or there is not one for each choice.
    """
    values = [float(logit) for logit in logits]
    if len(values) != len(mask.choices):
        raise UsageError(f"head {head!r} has {len(values)} logits, {len(mask.choices)} choices")
    if not all(map(math.isfinite, values)):
        raise UsageError(f"a logit of head {head!r} is not finite: mask a choice instead")
    if not any(mask.allowed):
        raise UsageError(f"head {head!r} may choose nothing: keep one choice that does nothing")
    top = max(v for v, ok in zip(values, mask.allowed, strict=True) if ok)
    weights = [math.exp(v - top) if ok else 0.0 for v, ok in zip(values, mask.allowed, strict=True)]
    total = math.fsum(weights)
    probabilities = tuple(weight / total for weight in weights)
    if stream:
        source = generators[stream]
        cursor = source.cursor
        chosen = source.pick(probabilities)
    else:
        cursor, chosen = 0, probabilities.index(max(probabilities))
    return HeadSample(
        head=head,
        choices=mask.choices,
        logits=tuple(values),
        mask=mask.allowed,
        probabilities=probabilities,
        entropy=0.0 - math.fsum(p * math.log(p) for p in probabilities if p > 0),
        log_probability=values[chosen] - top - math.log(total),
        chosen=chosen,
        generator=stream,
        cursor=cursor,
        given=dict(given or {}),
    )


def chosen(samples: Sequence[HeadSample]) -> dict[str, str]:
    """Head -> name of its choice."""
    return {each.head: each.choices[each.chosen] for each in samples}


def decide(
    policy: Policy,
    values: Plain,
    mask: Mask,
    generators: Generators,
    *,
    recorder: EventTaker | None = None,
    agent: str = "",
    target: str = "",
    schema_name: str = "",
) -> tuple[tuple[HeadSample, ...], Event | None]:
    """Let a policy decide and record the chain observation > mask > head-sample.

    Args:
        policy: that decides.
        values: what it sees: plain data, numbers as the policy reads them.
        mask: what it may choose, and why not the rest.
        generators: the run's.
        recorder: of the run, if it has one.
        agent: who decides; the log names its policy by this.
        target: stable ID of what the decision is about.
        schema_name: of the set of features.

    Returns:
        The samples, and the last event: the cause of the proposals that they become.
    """
    samples = tuple(policy.decide(values, mask.heads, generators))
    if recorder is None:
        return samples, None
    seen = Observation(canonical.digest(values), values, schema_name)
    event = recorder.event("observation", seen, agent=agent, target=target)
    event = recorder.event("mask", mask, cause=event, agent=agent, target=target)
    for each in samples:
        event = recorder.event("head-sample", each, cause=event, agent=agent, target=target)
    return samples, event
