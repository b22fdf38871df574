"""Quality against speed: one mark per candidate with the interval of its speedup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from esper.report import numbers
from esper.report.data import Point, Quality
from esper.report.markup import Markup, el
from esper.report.svg import Canvas, fit, text_at

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 18.0, 14.0, 46.0
_CHAR = 6.3


@dataclass(frozen=True)
class _Frame:
    """Maps figures to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float
    height: float

    def at(self, speedup: float, quality: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (speedup - self.x[0]) / (self.x[1] - self.x[0])
        up = (quality - self.y[0]) / (self.y[1] - self.y[0])
        return (
            _LEFT + across * (self.width - _LEFT - _RIGHT),
            self.height - _BOTTOM - up * (self.height - _TOP - _BOTTOM),
        )


def plot(
    points: Sequence[Point],
    quality: Quality | None = None,
    *,
    width: float = 880.0,
    prefix: str = "plot",
    standalone: bool = True,
) -> str:
    """SVG with speedup across and quality upwards; the model as given stands at a speedup of 1.

    Args:
        points: candidates; those with figures that are not finite are left out.
        quality: of the model as given, and the floor that the budget sets.
    """
    shown = [p for p in points if isfinite(p.speedup) and isfinite(p.quality)]
    height = 360.0 if width >= 560 else 300.0
    frame = _frame(shown, quality, width, height)
    accepted = sum(p.accepted for p in shown)
    metric = quality.metric if quality is not None else "quality"
    canvas = Canvas(
        width,
        prefix,
        f"{metric} against speedup",
        f"{len(shown)} candidates, {accepted} of them accepted. Lines are the intervals of the "
        "speedups. The figures stand in the table below the plot.",
    )
    _axes(canvas, frame, metric)
    taken: list[tuple[float, float, float, float]] = []
    if quality is not None:
        _floor(canvas, frame, quality, taken)
        x, y = frame.at(1.0, quality.before)
        taken.append((x - 7, y - 7, x + 7, y + 7))
    for point in sorted(shown, key=lambda p: p.accepted):
        _span(canvas, frame, point)
        x, y = frame.at(point.speedup, point.quality)
        taken.append((x - 7, y - 7, x + 7, y + 7))
    if quality is not None:
        _mark(canvas, frame, 1.0, quality.before, "es-base", "as given")
        _label(canvas, frame, 1.0, quality.before, "as given", taken)
    for point in sorted(shown, key=lambda p: not p.accepted):
        _label(canvas, frame, point.speedup, point.quality, point.label, taken)
    return canvas.svg(height, standalone)


def _frame(points: Sequence[Point], quality: Quality | None, width: float, height: float) -> _Frame:
    across = [
        1.0,
        *(
            v
            for p in points
            for v in (p.speedup, p.lower, p.upper)
            if v is not None and isfinite(v)
        ),
    ]
    up = [p.quality for p in points]
    if quality is not None:
        up += [quality.before, *([quality.floor] if quality.floor is not None else [])]
    return _Frame(_padded(across, 0.05), _padded(up, 0.12), width, height)


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * share or max(abs(high) * share, 1e-3)
    return low - room, high + room


def _axes(canvas: Canvas, frame: _Frame, metric: str) -> None:
    wide = frame.width >= 560
    floor = frame.height - _BOTTOM
    for value, label in numbers.ticks(*frame.x, 9 if wide else 4):
        x, _ = frame.at(value, frame.y[0])
        canvas.add(
            el("line", x1=x, x2=x, y1=_TOP, y2=floor, class_="es-grid"),
            text_at(x, floor + 17, f"{numbers.TIMES}{label}", class_="es-soft es-num es-mid"),
        )
    for value, label in numbers.ticks(*frame.y, 6):
        _, y = frame.at(frame.x[0], value)
        canvas.add(
            el("line", x1=_LEFT, x2=frame.width - _RIGHT, y1=y, y2=y, class_="es-grid"),
            text_at(_LEFT - 8, y + 4, label, class_="es-soft es-num es-end"),
        )
    canvas.add(
        el("line", x1=_LEFT, x2=frame.width - _RIGHT, y1=floor, y2=floor, class_="es-axis"),
        text_at(
            (_LEFT + frame.width - _RIGHT) / 2,
            frame.height - 8,
            "speedup (measured)",
            class_="es-mid",
        ),
        el(
            "text",
            fit(metric, floor - _TOP, _CHAR),
            class_="es-mid",
            transform=f"translate(13 {(floor + _TOP) / 2:g}) rotate(-90)",
        ),
    )


def _floor(
    canvas: Canvas,
    frame: _Frame,
    quality: Quality,
    taken: list[tuple[float, float, float, float]],
) -> None:
    if quality.floor is None:
        return
    _, y = frame.at(frame.x[0], quality.floor)
    label = f"budget: at least {numbers.quality(quality.floor)}"
    right = frame.width - _RIGHT
    canvas.add(
        el("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="es-rule"),
        text_at(right - 4, y + 14, label, class_="es-soft es-end es-num"),
    )
    taken.append((right - 4 - _CHAR * len(label), y, right, y + 17))


def _span(canvas: Canvas, frame: _Frame, point: Point) -> None:
    style = "es-yes" if point.accepted else "es-no"
    x, y = frame.at(point.speedup, point.quality)
    span = numbers.interval(point.lower, point.upper)
    text = (
        f"{point.label}: {numbers.times(point.speedup)} {span}, {numbers.quality(point.quality)}, "
        f"{'accepted' if point.accepted else 'not accepted'}"
    )
    lines: list[Markup] = []
    if point.lower is not None and point.upper is not None:
        ends = [min(max(v, frame.x[0]), frame.x[1]) for v in (point.lower, point.upper)]
        (left, _), (right, _) = (frame.at(end, point.quality) for end in ends)
        lines.append(el("line", x1=left, x2=right, y1=y, y2=y, class_=style))
        lines += [
            el("line", x1=end, x2=end, y1=y - 4, y2=y + 4, class_=style) for end in (left, right)
        ]
    canvas.add(el("g", el("title", text), *lines, el("circle", cx=x, cy=y, r=4.5, class_=style)))


def _mark(
    canvas: Canvas, frame: _Frame, speedup: float, quality: float, style: str, title: str
) -> None:
    x, y = frame.at(speedup, quality)
    canvas.add(
        el(
            "rect",
            el("title", title),
            x=x - 4,
            y=y - 4,
            width=8,
            height=8,
            class_=style,
            transform=f"rotate(45 {x:g} {y:g})",
        )
    )


def _label(
    canvas: Canvas,
    frame: _Frame,
    speedup: float,
    quality: float,
    label: str,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Put a label where nothing is yet: above, below, right or left; else leave it to the table."""
    x, y = frame.at(speedup, quality)
    short = fit(label, 190, _CHAR)
    wide = _CHAR * len(short)
    places = [
        (x, y - 11, "es-mid", x - wide / 2),
        (x, y + 20, "es-mid", x - wide / 2),
        (x + 10, y + 4, "", x + 10),
        (x - 10, y + 4, "es-end", x - 10 - wide),
    ]
    for at, base, anchor, left in places:
        box = (left, base - 10, left + wide, base + 3)
        inside = (
            box[0] >= _LEFT
            and box[2] <= frame.width
            and box[1] >= 0
            and box[3] <= frame.height - _BOTTOM
        )
        if inside and not any(_overlap(box, other) for other in taken):
            canvas.add(text_at(at, base, short, class_=f"es-soft {anchor}".strip()))
            taken.append(box)
            return


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
