"""Why something happened: the causal chain of one event, for a person."""

from __future__ import annotations

import json
from typing import Any

from esper.recorder import canonical
from esper.recorder.decisions import (
    HeadSample,
    Mask,
    Observation,
    Outcome,
    Proposed,
    ResolvedConfig,
    Rewrite,
    Verdict,
)
from esper.recorder.event import Event
from esper.recorder.log import Log


def why(log: Log, event: Event) -> str:
    """The chain from the root to the event, and everything that followed directly from it.

    Deterministic: no times and no addresses.
    """
    lines: list[str] = []
    for cause in log.causes(event):
        lines += _event(cause, "=>" if cause.number == event.number else "  ")
        lines += [f"     {line}" for line in _payload(cause)]
    effects = _below(log, event)
    if effects:
        lines.append("and so")
    for depth, effect in effects:
        indent = "  " * depth
        lines += [f"{indent}{line}" for line in _event(effect, "  ")]
        lines += [f"{indent}     {line}" for line in _payload(effect)]
    return "\n".join(lines)


def why_data(log: Log, event: Event) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "event": event.as_data(),
        "causes": [cause.as_data() for cause in log.causes(event)[:-1]],
        "effects": [effect.as_data() for _, effect in _below(log, event)],
    }


def _below(log: Log, event: Event, depth: int = 0) -> list[tuple[int, Event]]:
    found: list[tuple[int, Event]] = []
    for effect in log.effects(event):
        found.append((depth, effect))
        found += _below(log, effect, depth + 1)
    return found


def _event(event: Event, mark: str) -> list[str]:
    who = f" by {event.agent}" if event.agent else ""
    where = f" of {event.target}" if event.target else ""
    return [f"{mark} {event.code}  tick {event.tick}  {event.kind}{where}{who}"]


def _payload(event: Event) -> list[str]:
    payload = event.payload
    if isinstance(payload, Observation):
        return [f"saw {payload.digest}", *_values(payload.values)]
    if isinstance(payload, Mask):
        return _mask(payload)
    if isinstance(payload, HeadSample):
        return _sample(payload)
    if isinstance(payload, Proposed):
        return [f"asked for {_compact(payload.proposal)}"]
    if isinstance(payload, ResolvedConfig):
        named = ("blueprint", "blend", "curve", "tempo", "init", "state_policy")
        chosen = {name: getattr(payload, name) for name in named if getattr(payload, name)}
        return _values({**chosen, **payload.values})
    if isinstance(payload, Verdict):
        place = f" at {payload.node}" if payload.node else ""
        remedy = f"; {payload.remedy}" if payload.remedy else ""
        figures = _values(payload.figures)
        return [f"{payload.result} [{payload.code}]{place}: {payload.reason}{remedy}", *figures]
    if isinstance(payload, Rewrite):
        return _rewrite(payload)
    if isinstance(payload, Outcome):
        over = f" over {payload.over} ticks" if payload.over else ""
        return [f"outcome{over} ({payload.method or 'unattributed'})", *_values(payload.metrics)]
    return _values(canonical.plain(payload))


def _mask(mask: Mask) -> list[str]:
    lines = []
    for name, head in mask.heads.items():
        allowed = [c for c, ok in zip(head.choices, head.allowed, strict=True) if ok]
        lines.append(f"{name}: {', '.join(allowed) or 'nothing'} allowed")
        lines += [
            f"  not {choice}: {rule}" + (f" ({mask.reasons[rule]})" if rule in mask.reasons else "")
            for choice, rule in zip(head.choices, head.rules, strict=True)
            if rule
        ]
    return lines


def _sample(sample: HeadSample) -> list[str]:
    drawn = f" with {sample.generator}, draw {sample.cursor}" if sample.generator else ""
    facts = f"log-probability {sample.log_probability:.4g}, entropy {sample.entropy:.4g}"
    lines = [f"{sample.head}: chose {sample.choices[sample.chosen]}{drawn} ({facts})"]
    wide = max(map(len, sample.choices))
    rows = zip(sample.choices, sample.logits, sample.mask, sample.probabilities, strict=True)
    for index, (choice, logit, allowed, probability) in enumerate(rows):
        mark = "*" if index == sample.chosen else " "
        share = f"{probability:8.4f}" if allowed else "  masked"
        lines.append(f"  {mark} {choice:<{wide}}  logit {logit:9.4f}  {share}")
    return lines


def _rewrite(rewrite: Rewrite) -> list[str]:
    lines = [rewrite.summary] if rewrite.summary else []
    lines.append(f"plan {rewrite.plan}")
    for what in ("graph", "parameters", "optimizer"):
        before, after = (getattr(rewrite, f"{what}_{when}") for when in ("before", "after"))
        if before or after:
            lines.append(f"{what} {before or '-'} -> {after or '-'}")
    return lines


def _values(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [_compact(values)] if values not in ({}, None) else []
    return [f"{name} = {_compact(value)}" for name, value in sorted(values.items())]


def _compact(value: Any) -> str:
    text = json.dumps(canonical.spelled(canonical.plain(value)), sort_keys=True)
    return text if len(text) <= 400 else f"{text[:397]}..."
