"""Canonical JSON: one text for one value, so that records can be hashed and compared.

Keys are sorted, there is no white space, and everything beyond ASCII is escaped (so any string has
a form, and the bytes are UTF-8). JSON has no word for what is not finite, so a NaN is
`{"$float":"nan"}`, and the infinities are `inf` and `-inf` there. A mapping of the user's own whose
only key looks like that gets another `$`, so no value is taken for another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

from esper.errors import UsageError

_TAG = "$float"
_TAG_LIKE = re.compile(r"\$+float")
_MARK = b'"$'  # no value that needs (un)escaping lacks this


def encode(value: Any) -> bytes:
    """Canonical JSON of plain data, dataclasses, pydantic models and numpy numbers.

    Tuples become lists; keys that are numbers become strings, as JSON does.

    Raises:
        UsageError: the value holds something else, such as a tensor.
    """
    try:
        try:
            text = _FAST.encode(value).encode()
        except ValueError:  # not finite somewhere
            return _FAST.encode(_escaped(value)).encode()
        return _FAST.encode(_escaped(value)).encode() if _MARK in text else text
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"this cannot be recorded as JSON: {reason}") from error


def decode(text: bytes) -> Any:
    """The value that `encode` was given, as plain data. Raises ValueError."""
    if _MARK not in text:
        return json.loads(text)
    return json.loads(text, object_hook=_unescaped)


def digest(value: Any) -> str:
    """32 hexadecimal digits for plain data; equal data have equal digests."""
    return hashlib.blake2b(encode(value), digest_size=16).hexdigest()


def plain(value: Any) -> Any:
    """A value as `decode` would return it: mappings, lists, strings, numbers."""
    return decode(encode(value))


def spelled(value: Any) -> Any:
    """Plain data with NaN and the infinities as the words that SQL and people read."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spelled(item) for item in value]
    return value


def _default(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = getattr(value, "__dict__", None)
        if fields is not None:
            return fields
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="python")
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    remedy = ""
    if hasattr(value, "tolist"):
        remedy = " (give .tolist(), or its digest and the tensor itself to Recorder.tensors)"
    raise TypeError(f"there is a {type(value).__name__} in it{remedy}")


_FAST = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_default
)


def _escaped(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {_TAG: "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, dict):
        if len(value) == 1 and _TAG_LIKE.fullmatch(str(key := next(iter(value)))):
            return {f"${key}": _escaped(value[key])}
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _escaped(_default(value))


def _unescaped(found: dict[str, Any]) -> Any:
    if len(found) == 1 and _TAG_LIKE.fullmatch(key := next(iter(found))):
        return float(found[key]) if key == _TAG else {key[1:]: found[key]}
    return found
