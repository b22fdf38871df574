"""Curves over ticks, with a mark for each thing that happened; marks carry the codes of events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from esper.report import numbers
from esper.report.markup import Markup, el
from esper.report.svg import Canvas, text_at

if TYPE_CHECKING:
    from esper.demo.page import Curve, Mark

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 18.0, 34.0, 46.0
_HEIGHT = 320.0
_MOST_MARKS = 40
_HUES = ("es-k0", "es-k7", "es-k6", "es-k8")  # the boxes of the legend; lines are es-c0, ...


def curves(
    lines: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    vertical: str = "loss",
    width: float = 880.0,
    prefix: str = "curves",
    standalone: bool = True,
) -> str:
    """SVG with ticks across. Points that are not finite are left out.

    Args:
        lines: the curves; as many as there are hues are told apart.
        marks: what happened when; the first 40 are drawn.
        vertical: what the curves show.
    """
    points = [p for line in lines for p in line.points if isfinite(p[1])]
    canvas = Canvas(
        width,
        prefix,
        f"{vertical} over ticks",
        f"{len(lines)} curves: {', '.join(line.name for line in lines)}. {len(marks)} changes are "
        "marked with the codes of their events.",
    )
    if not points:
        return canvas.svg(_HEIGHT, standalone)
    across = _span([x for x, _ in points])
    up = _span([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - across[0]) / (across[1] - across[0])
        high = (y - up[0]) / (up[1] - up[0])
        return (
            _LEFT + right * (width - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - high * (_HEIGHT - _TOP - _BOTTOM),
        )

    floor = _HEIGHT - _BOTTOM
    for value, label in numbers.ticks(*across, 8 if width >= 560 else 4):
        x, _ = at(value, up[0])
        canvas.add(text_at(x, floor + 17, label, class_="es-soft es-num es-mid"))
    for value, label in numbers.ticks(*up, 6):
        _, y = at(across[0], value)
        canvas.add(
            el("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="es-grid"),
            text_at(_LEFT - 8, y + 4, label, class_="es-soft es-num es-end"),
        )
    for mark in marks[:_MOST_MARKS]:
        x, _ = at(float(mark.tick), up[0])
        said = f"tick {mark.tick}: {mark.text}" + (f" ({mark.code})" if mark.code else "")
        canvas.add(
            el(
                "g",
                el("title", said),
                el("line", x1=x, x2=x, y1=_TOP, y2=floor, class_="es-rule"),
            )
        )
    for index, line in enumerate(lines):
        canvas.add(_line(line, at, index % len(_HUES)))
    canvas.add(*_legend(lines, width))
    middle = (_LEFT + width - _RIGHT) / 2
    canvas.add(
        el("line", x1=_LEFT, x2=width - _RIGHT, y1=floor, y2=floor, class_="es-axis"),
        text_at(middle, _HEIGHT - 8, f"tick ({vertical} upwards)", class_="es-mid"),
    )
    return canvas.svg(_HEIGHT, standalone)


def _line(line: Curve, at: Callable[[float, float], tuple[float, float]], hue: int) -> Markup:
    pixels = [at(x, y) for x, y in line.points if isfinite(y)]
    spelled = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    return el("polyline", el("title", line.name), points=spelled, class_=f"es-line es-c{hue}")


def _legend(lines: Sequence[Curve], width: float) -> list[Markup]:
    parts: list[Markup] = []
    x = _LEFT
    for index, line in enumerate(lines):
        room = 24 + 6.6 * len(line.name)
        if x + room > width:
            break
        parts += [
            el("rect", x=x, y=10.0, width=11, height=11, rx=2, class_=_HUES[index % len(_HUES)]),
            text_at(x + 17, 20.0, line.name, class_="es-soft"),
        ]
        x += room + 12
    return parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(abs(high) * 0.04, 1e-3)
    return low - room, high + room
