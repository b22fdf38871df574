"""Elements that escape by construction: text becomes markup only through `el`.

Names come from models and are not trusted. A plain `str` child or attribute is always escaped;
only `Markup`, which this module alone makes, is taken as it is.
"""

from __future__ import annotations

import html
import re

_VOID = frozenset({"meta", "input", "wbr"})
# Control characters are invalid in XML; bidirectional controls could make a name read as another.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\ufffe\uffff]"
)


class Markup(str):
    """Text that is already well-formed markup."""

    __slots__ = ()


Child = str | int | None


def text(value: object) -> Markup:
    r"""Escaped text; characters that could break or disguise it are shown as `\\uXXXX`."""
    visible = _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", str(value))
    return Markup(html.escape(visible, quote=True))


def el(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element. Attribute names lose a trailing `_` and turn `_` into `-`.

    An attribute that is None or False is left out; True gives a bare attribute name as its value.
    Numbers are printed with at most two decimals.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        if label == "viewbox":
            label = "viewBox"  # SVG attribute names are case sensitive
        shown = label if value is True else number(value)
        parts.append(f'{label}="{text(shown)}"')
    opening = f"<{' '.join(parts)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after another; None is nothing."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else text(child)
            for child in children
            if child is not None
        )
    )


def number(value: str | int | float) -> str:
    """A coordinate without needless digits; text as it is."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"
    return str(value)
