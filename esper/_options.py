"""Options of passes: the fields of a frozen dataclass, read from and written as text."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from esper._grammar import WORD, Raw, Word, show

_INT = re.compile(r"[+-]?[0-9]{1,300}")
_FLOAT = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,6}))?(%?)")
_SEQUENCES = (tuple, list, Sequence)
# A word is read as the first of these that accepts it, so that text means one thing.
_ORDER = {type(None): 0, bool: 1, int: 2, float: 3, str: 9}


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        name: kebab-case, as in pipelines.
        field: name of the dataclass field.
        kind: resolved type.
        required: no default exists.
        default: default value, if any.
        doc: meaning, from the field's metadata.
    """

    name: str
    field: str
    kind: Any
    required: bool
    default: Any
    doc: str


def options(cls: type[Any]) -> dict[str, Option]:
    """Options of a pass class by kebab-case name, in order of definition."""
    hints = typing.get_type_hints(cls)
    result: dict[str, Option] = {}
    for field in dataclasses.fields(cls):
        if not field.init or field.name.startswith("_"):
            continue
        missing = field.default is dataclasses.MISSING
        required = missing and field.default_factory is dataclasses.MISSING
        default = None if required else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        name = field.name.rstrip("_").replace("_", "-")
        doc = str(field.metadata.get("doc", ""))
        result[name] = Option(name, field.name, hints[field.name], required, default, doc)
    return result


def read(raw: Raw, kind: Any) -> Any:
    """The value of a type. Raises ValueError saying what is expected instead."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        for member in sorted(get_args(kind), key=lambda k: _ORDER.get(k, 5)):
            try:
                return read(raw, member)
            except ValueError:
                continue
        raise _expected(kind, raw)
    if (origin or kind) in _SEQUENCES:
        return _read_sequence(raw, kind, list if (origin or kind) is list else tuple)
    if not isinstance(raw, Word):
        raise _expected(kind, raw)
    if origin is Literal:
        for choice in get_args(kind):
            if raw == encode(choice) or (isinstance(choice, str) and raw.text == choice):
                return choice
        raise _expected(kind, raw)
    if kind is str:
        return raw.text
    if raw.quoted:
        raise _expected(kind, raw)
    return _read_word(raw, kind)


def _read_sequence(raw: Raw, kind: Any, make: type[Any]) -> Any:
    if isinstance(raw, Word):
        raise _expected(kind, raw)
    args = get_args(kind) or (str, ...)
    if make is tuple and get_origin(kind) is tuple and Ellipsis not in args:
        if len(raw) != len([a for a in args if a != ()]):
            raise _expected(kind, raw)
        return tuple(read(r, a) for r, a in zip(raw, args, strict=True))
    return make(read(r, args[0]) for r in raw)


def _read_word(raw: Word, kind: Any) -> Any:
    text = raw.text
    if kind is type(None) and text == "none":
        return None
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind is int and _INT.fullmatch(text):
        return int(text)
    if kind is float:
        if text in ("inf", "-inf"):
            return float(text)
        match = _FLOAT.fullmatch(text)
        if match is not None:
            mantissa, exponent, percent = match.groups()
            # moves the decimal point, so that 33.3% is the same double as 0.333
            value = float(f"{mantissa}e{int(exponent or 0) - 2 * len(percent)}")
            if math.isfinite(value):
                return value
    raise _expected(kind, raw)


def encode(value: Any) -> Raw:
    """The tree of a value as it would be written."""
    if isinstance(value, str):
        return Word(value, quoted=WORD.fullmatch(value) is None or not value.isprintable())
    if isinstance(value, (tuple, list)):
        return tuple(map(encode, value))
    if value is None or isinstance(value, bool):
        return Word(str(value).lower())
    return Word(repr(value))


def write(value: Any, kind: Any) -> str:
    """Text of a value, such that reading it gives the value back.

    Raises ValueError for a value outside its type, which has no text.
    """
    plain = encode(value)
    for raw in (plain, _quote(value, plain)):
        try:
            if read(raw, kind) == value:
                return show(raw)
        except ValueError:
            continue
    raise ValueError(f"{value!r} is not {kind_text(kind)}")


def _quote(value: Any, raw: Raw) -> Raw:
    """The tree with every string in quotes, for one that reads as something else without."""
    if isinstance(value, str) and isinstance(raw, Word):
        return Word(raw.text, quoted=True)
    if isinstance(raw, tuple):
        return tuple(_quote(v, r) for v, r in zip(value, raw, strict=True))
    return raw


def kind_text(kind: Any) -> str:
    """A type in words: `a number`, `one of a, b`, `a list of integers`, `auto or an integer`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _either(kind_text(a) for a in args)
    if origin is Literal:
        words = [show(encode(a)) for a in args]
        return words[0] if len(words) == 1 else "one of " + ", ".join(words)
    if (origin or kind) in _SEQUENCES:
        if origin is tuple and args and Ellipsis not in args:
            return "a list [" + ", ".join(kind_text(a) for a in args) + "]"
        return f"a list such as [x,y], each {kind_text(args[0] if args else str)}"
    names = {
        int: "an integer",
        float: "a number (0.3 or 30%)",
        bool: "true or false",
        str: "a string",
        type(None): "none",
    }
    return names.get(kind, f"a {getattr(kind, '__name__', kind)} (Python only)")


def _either(parts: Iterable[str]) -> str:
    *head, last = parts
    return f"{', '.join(head)} or {last}" if head else last


def _expected(kind: Any, raw: Raw) -> ValueError:
    return ValueError(f"{kind_text(kind)}, not {show(raw)}")
