"""Comparing what was recorded with what happens now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from esper.recorder import canonical
from esper.recorder.event import Event
from esper.recorder.kinds import KINDS
from esper.recorder.payload import Payload
from esper.replay.report import Blame, Difference

#: Kinds that depend on the process and not on the run.
CHANCE = frozenset({"recompile", "resumed", "finished"})
#: Digests of floating-point values: equal on the same platform only.
VALUES = frozenset(
    "parameters parameters_before parameters_after optimizer optimizer_before optimizer_after "
    "digest content plan".split()
)
RELATIVE = 1e-3  # between platforms
MOST = 5  # differences that are named


def differences(kind: str, recorded: Any, now: Any, *, bitwise: bool = True) -> list[Difference]:
    """Fields of two payloads that differ, the first few; elapsed seconds are not compared.

    Args:
        kind: of the event.
        recorded, now: payloads or plain data.
        bitwise: whether both were made on the same platform. Otherwise numbers may differ
            slightly, and digests of values are left out.
    """
    found = []
    for difference in _walk(_ordered(kind, recorded), _ordered(kind, now), "", bitwise):
        found.append(difference)
        if len(found) == MOST:
            break
    return found


def _ordered(kind: str, payload: Any) -> Any:
    """Plain data in the order of the kind's fields: inputs come before what follows from them."""
    found = canonical.plain(payload)
    if kind not in KINDS or not isinstance(found, dict):
        return found
    names = [field.name for field in fields(KINDS[kind]) if field.name in found]
    return {name: found[name] for name in dict.fromkeys([*names, *found])}


def _walk(a: Any, b: Any, path: str, bitwise: bool) -> Iterator[Difference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if "seconds" in key or (not bitwise and key in VALUES):
                continue
            where = f"{path}.{key}" if path else key
            if (key in a) != (key in b):
                yield Difference(where, a.get(key), b.get(key))
            else:
                yield from _walk(a[key], b[key], where, bitwise)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _walk(left, right, f"{path}[{index}]", bitwise)
    elif not _same(a, b, bitwise):
        yield Difference(path, a, b)


def _same(a: Any, b: Any, bitwise: bool) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or (not bitwise and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-6))
    return type(a) is type(b) and bool(a == b)


def payload(event_kind: str, value: Payload | Mapping[str, Any]) -> dict[str, Any]:
    """The part of a payload that a replay compares."""
    found: dict[str, Any] = canonical.plain(value)
    if event_kind == "run-started":
        found.pop("platform", None)  # held against this one's before
        for name in ("program", "policies"):  # the user may name another, what it does is compared
            found["config"].pop(name, None)
    if event_kind == "keyframe" and "content" in found["state"]:
        # What else it holds depends on the process (`esper.live.keyframes.content`).
        found.pop("digest")
        found.pop("size")
    if event_kind == "metric" and "seconds" in str(found.get("name")):
        found.pop("value", None)
    return found


_BLAMES: dict[str, Blame] = {
    "run-started": "start",
    "mask": "mask",
    "head-sample": "policy",
    "proposal": "wiring",
    "resolved-config": "wiring",
    "verdict": "wiring",
    "rewrite": "wiring",
    "transition": "wiring",
}


def blame(event: Event, found: list[Difference]) -> Blame:
    """What is responsible for a first divergence: everything before it agreed.

    Args:
        event: as recorded.
        found: in which fields it differs; `kind` where something else happened.
    """
    fields = {difference.field for difference in found}
    if event.kind == "tick" and fields == {"batch"}:
        return "data"
    if event.kind == "verdict" and fields & {"result", "code"}:
        return "mask" if _refused(found) else "wiring"
    if event.kind == "boundary" and "graph" in fields:
        return "wiring"
    if event.kind == "rewrite" and fields & {"parameters_before", "optimizer_before"}:
        return "training"
    if "kind" in fields:
        now = next(d.now for d in found if d.field == "kind")
        return _BLAMES.get(event.kind) or _BLAMES.get(str(now), "training")
    if event.kind == "tick" and "batch" in fields:
        return "data"
    return _BLAMES.get(event.kind, "training")


def _refused(found: list[Difference]) -> bool:
    """Whether the contract (or a precondition) refuses on one side only, or for other reasons."""
    return not any("failure" in (d.recorded, d.now) for d in found)
