"""Operations a second against operations a byte, under the roofs that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, log10
from typing import Any

from esper.report.markup import Markup, el
from esper.report.svg import Canvas, text_at

_WIDTH, _HEIGHT = 860.0, 470.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 24.0, 62.0, 46.0
_FAMILIES = {  # colour and name
    "runs": ("es-k0", "V:N:M in runs"),
    "blocks": ("es-k7", "blocks"),
    "int8": ("es-k6", "int8"),
    "rest": ("es-k8", "2:4, low rank, fused"),
}
_LINE = 12.0  # between the names of two roofs


def roofline_plot(document: Mapping[str, Any], dtype: str) -> str:
    """SVG, both scales logarithmic: a dot for each op of ours, a small cross for each peer."""
    points = [
        contender
        for panel in document["panels"]
        if panel["dtype"] == dtype
        for contender in panel["contenders"]
    ]
    calibration = document["calibration"]
    across = _decades([p["flops"] / p["bytes"] for p in points])
    rates = [p["flops"] / p["microseconds"] * 1e6 for p in points]
    up = _decades([*rates, *calibration["peaks"].values()])
    frame = _Frame(across, up)
    title = f"Roofline, {dtype} inputs"
    canvas = Canvas(
        _WIDTH,
        f"roofline-{dtype}",
        title,
        f"{len(points)} contenders on {document['device']}. Lines are measured bandwidth and "
        "measured peaks; dots are ours, crosses are peers.",
    )
    canvas.add(text_at(0, 14, title, class_="es-title"), *_legend())
    _axes(canvas, frame)
    _roofs(canvas, frame, calibration)
    for point in sorted(points, key=lambda p: p["role"] == "esper"):
        x, y = frame.at(
            point["flops"] / point["bytes"], point["flops"] / point["microseconds"] * 1e6
        )
        canvas.add(_mark(point, x, y))
    return str(canvas.svg(_HEIGHT, standalone=True)) + "\n"


class _Frame:
    """Decades to pixels."""

    def __init__(self, across: tuple[int, int], up: tuple[int, int]) -> None:
        self.across, self.up = across, up

    def at(self, intensity: float, rate: float) -> tuple[float, float]:
        """Pixels of a point."""
        right = (log10(intensity) - self.across[0]) / (self.across[1] - self.across[0])
        high = (log10(rate) - self.up[0]) / (self.up[1] - self.up[0])
        return (
            _LEFT + right * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - high * (_HEIGHT - _TOP - _BOTTOM),
        )


def _axes(canvas: Canvas, frame: _Frame) -> None:
    base = _HEIGHT - _BOTTOM
    for power in range(frame.across[0], frame.across[1] + 1):
        x, _ = frame.at(10.0**power, 10.0 ** frame.up[0])
        canvas.add(
            el("line", x1=x, x2=x, y1=_TOP, y2=base, class_="es-grid"),
            text_at(x, base + 17, f"{10.0**power:g}", class_="es-soft es-num es-mid"),
        )
    for power in range(frame.up[0], frame.up[1] + 1):
        _, y = frame.at(10.0 ** frame.across[0], 10.0**power)
        canvas.add(
            el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="es-grid"),
            text_at(_LEFT - 8, y + 4, _rate(10.0**power), class_="es-soft es-num es-end"),
        )
    canvas.add(
        text_at((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "operations a byte", class_="es-mid"),
        text_at(0, _TOP - 10, "operations a second", class_="es-soft"),
    )


def _roofs(canvas: Canvas, frame: _Frame, device: Mapping[str, Any]) -> None:
    """The slope of the bandwidth, and a level for each unit from where it meets it."""
    right = 10.0 ** frame.across[1]
    left = 10.0 ** frame.across[0]
    bandwidth = device["bandwidth"]
    top = max(device["peaks"].values())
    low = max(left, 10.0 ** frame.up[0] / bandwidth)
    (x1, y1), (x2, y2) = frame.at(low, low * bandwidth), frame.at(top / bandwidth, top)
    label = f"{bandwidth / 1e9:,.0f} GB/s"
    canvas.add(
        el("line", el("title", label), x1=x1, y1=y1, x2=x2, y2=y2, class_="es-axis"),
        text_at(x1 + 10, y1 - 6 if y1 < _HEIGHT - _BOTTOM - 20 else y1 - 22, label, "es-note"),
    )
    free = 0.0  # where the next name may stand, so that names do not touch
    for unit, peak in sorted(device["peaks"].items(), key=lambda item: -item[1]):
        (x1, y1), (x2, _) = frame.at(max(peak / bandwidth, left), peak), frame.at(right, peak)
        name = max(y1 - 5, free)
        free = name + _LINE
        canvas.add(
            el("line", x1=x1, y1=y1, x2=x2, y2=y1, class_="es-axis"),
            text_at(x2, name, f"{unit} {_rate(peak)}", class_="es-note es-num es-end"),
        )


def _mark(point: Mapping[str, Any], x: float, y: float) -> Markup:
    said = el("title", f"{point['key']}: {point['microseconds']:,.0f} µs")
    if point["role"] != "esper":
        path = f"M{x - 2.5:.1f} {y - 2.5:.1f}l5 5m0 -5l-5 5"
        return el("path", said, d=path, class_="es-axis")
    return el("circle", said, cx=x, cy=y, r=3, class_=_FAMILIES[_family(point)][0])


def _family(point: Mapping[str, Any]) -> str:
    text = point["compression"]
    if "int8" in text:
        return "int8"
    if "@" in text and "x" in text:
        return "blocks"
    return "runs" if text.count(":") == 2 else "rest"


def _legend() -> list[Markup]:
    parts: list[Markup] = []
    x = 0.0
    for colour, name in _FAMILIES.values():
        circle = el("circle", cx=x + 5, cy=30, r=4, class_=colour)
        parts += [circle, text_at(x + 15, 34, name, class_="es-soft")]
        x += 34 + 6.6 * len(name)
    cross = el("path", d=f"M{x} 26l8 8m0 -8l-8 8", class_="es-axis")
    return [*parts, cross, text_at(x + 15, 34, "peers", class_="es-soft")]


def _rate(value: float) -> str:
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)
