"""The kinds of events: a table from name to the type of the payload.

A kind that is not in the table is kept and shown as plain data, so a log may hold more than the
Esper that reads it knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from esper.errors import UsageError
from esper.recorder import decisions, happenings
from esper.recorder.payload import Payload

KINDS: dict[str, type[Payload]] = {
    cls.kind: cls
    for cls in (
        happenings.RunStarted,
        happenings.Resumed,
        happenings.Finished,
        happenings.Tick,
        happenings.Boundary,
        decisions.Observation,
        decisions.Mask,
        decisions.HeadSample,
        decisions.Proposed,
        decisions.ResolvedConfig,
        decisions.Verdict,
        decisions.Rewrite,
        decisions.Outcome,
        happenings.Transition,
        happenings.Probe,
        happenings.Rollback,
        happenings.Recompile,
        happenings.Keyframe,
        happenings.Metric,
    )
}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[kind])


@cache
def check_name(kind: str) -> None:
    """Raise UsageError for what cannot name a kind."""
    if not _NAME.fullmatch(kind):
        raise UsageError(
            f"{kind!r} cannot name a kind of event: lower-case words joined by -, such as seed-died"
        )


def checked(kind: str, payload: Mapping[str, Any]) -> Payload | Mapping[str, Any]:
    """The typed payload of plain data. Raises UsageError where it does not fit the kind."""
    if kind not in KINDS:
        return payload
    try:
        found: Payload = _adapter(kind).validate_python(payload)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "payload"
        raise UsageError(
            f"the payload of a {kind} event does not fit: {where}: {first['msg']}"
        ) from error


def parsed(kind: str, schema: int, payload: Any) -> Any:
    """The payload of a record: typed where kind and version are known, plain data otherwise."""
    known = KINDS.get(kind)
    if known is None or known.schema != schema:
        return payload
    try:
        return _adapter(kind).validate_python(payload)
    except (ValidationError, UsageError):
        return payload
