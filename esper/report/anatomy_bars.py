"""Bars of the anatomy picture: one axis as one bar, or as a column for each of many layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from esper.report import numbers
from esper.report.anatomy_layout import Bar
from esper.report.markup import Markup, el, join
from esper.report.svg import Canvas, fit, text_at

_HUES = (
    "heads",
    "query-heads",
    "kv-groups",
    "head-size",
    "neurons",
    "channels",
    "groups",
    "embedding",
    "vocabulary",
    "units",
)
PAD = 14.0


@dataclass(frozen=True)
class Page:
    """Where things go. Lengths are pixels; `full` is the widest bar."""

    width: float
    narrow: bool
    scale: dict[str, float]
    left: float
    full: float
    row: float
    prefix: str


def page_for(width: float, bars: Sequence[Bar], prefix: str) -> Page:
    """Scales and columns for these bars."""
    narrow = width < 560
    left = PAD if narrow else 0.29 * width
    full = width - left - PAD - (0.0 if narrow else 172.0)
    widest: dict[str, int] = {}
    for bar in bars:
        widest[bar.kind] = max(widest.get(bar.kind, 1), bar.before, bar.after)
    # Kinds of few units get shorter bars than kinds of many, so that the network has a silhouette.
    top = log(max([2, *widest.values()]))
    scale = {k: full * (0.4 + 0.6 * log(max(2, n)) / top) / n for k, n in widest.items()}
    return Page(width, narrow, scale, left, full, 38.0 if narrow else 22.0, prefix)


def hue(kind: str) -> int:
    """Number of the colour of a kind."""
    return _HUES.index(kind) if kind in _HUES else len(_HUES) - 1


def row_of(canvas: Canvas, page: Page, bar: Bar, y: float) -> Markup:
    """One axis: its name, its bar, its size and by how much it changed."""
    bar_y, height = (y + 21.0, 12.0) if page.narrow else (y + 4.0, 14.0)
    change = numbers.change(bar.before, bar.after) if bar.before else "new"
    return el(
        "g",
        el("title", _tooltip(bar)),
        _words(page, bar, y + 15.0, _sizes(bar), change),
        _bar(canvas, page, bar, bar_y, height),
    )


def _words(page: Page, bar: Bar, y: float, sizes: str, change: str) -> Markup:
    room = page.width - 150 if page.narrow else page.left - 2 * PAD
    name = fit(bar.label, room - 6.6 * len(bar.kind) - 10, 6.4)
    right = page.width - PAD - 6
    return join(
        el(
            "text",
            el("tspan", f"{name} " if name else "", class_="es-soft"),
            el("tspan", bar.kind),
            x=PAD,
            y=y,
        ),
        # Wide pages keep a column for changes, so that sizes stay aligned.
        text_at(
            right - 46 if change or not page.narrow else right, y, sizes, class_="es-num es-end"
        ),
        text_at(right, y, change, class_="es-soft es-num es-end") if change else None,
    )


def _sizes(bar: Bar) -> str:
    if bar.before == bar.after:
        return numbers.count(bar.before)
    return f"{numbers.count(bar.before)} \N{RIGHTWARDS ARROW} {numbers.count(bar.after)}"


def _tooltip(bar: Bar) -> str:
    parts = [f"{bar.id}: {_sizes(bar)}"]
    if bar.frozen:
        parts.append(f"fixed: {bar.frozen}")
    if bar.lossy:
        parts.append(f"cuts are lossy: {bar.lossy}")
    if bar.spread > 1:
        parts.append(f"shared by {bar.spread} blocks")
    return "; ".join(parts)


def _bar(canvas: Canvas, page: Page, bar: Bar, y: float, height: float) -> Markup:
    unit = page.scale[bar.kind]
    colour = f"es-k{hue(bar.kind)}"
    x = page.left
    if bar.frozen is not None and bar.before == bar.after:
        span = max(2.0, unit * bar.before)
        inside = len(bar.frozen) * 5.6 <= span - 12
        start = x if inside else x + span
        reason = fit(bar.frozen, x + page.full - start - 12, 5.6)
        return join(
            canvas.box(x, y, span, height, "es-fixed"),
            text_at(start + 6, y + height - 3.5, reason, class_="es-note"),
        )
    if bar.cells:
        return _cells(canvas, x, y, unit, height, bar, colour)
    kept = min(bar.before, bar.after)
    pieces = [canvas.box(x, y, max(1.0, unit * kept), height, f"es-fill {colour}")] if kept else []
    rest = abs(bar.before - bar.after)
    if rest:
        style = "es-cut" if bar.after < bar.before else f"es-grown {colour}"
        pieces.append(canvas.box(x + unit * kept, y, max(1.0, unit * rest), height, style))
    return join(*pieces)


def _cells(
    canvas: Canvas, x: float, y: float, unit: float, height: float, bar: Bar, colour: str
) -> Markup:
    gap = 2.0 if unit > 8 else 1.0
    return join(
        *[
            canvas.box(
                x + i * unit,
                y,
                unit - gap,
                height,
                "es-cut" if i in bar.cut else f"es-fill {colour}",
            )
            for i in range(bar.before)
        ]
    )


def columns_of(canvas: Canvas, page: Page, bars: Sequence[Bar], y: float, row: float) -> Markup:
    """One axis of many like blocks: a column each, as high as the axis has units."""
    first = bars[0]
    top = max(max(bar.before, bar.after) for bar in bars)
    high = row - (28.0 if page.narrow else 8.0)
    start = y + (22.0 if page.narrow else 3.0)
    step = page.full / len(bars)
    colour = f"es-k{hue(first.kind)}"
    pieces: list[Markup] = []
    for i, bar in enumerate(bars):
        kept = high * min(bar.before, bar.after) / top
        rest = high * abs(bar.before - bar.after) / top
        still = "es-fixed" if bar.frozen is not None else f"es-fill {colour}"
        moved = "es-cut" if bar.after < bar.before else f"es-grown {colour}"
        x, wide = page.left + i * step, max(0.5, step - (1.0 if step > 2.5 else 0.25))
        foot = start + high - kept
        pieces.append(
            el(
                "g",
                el("title", _tooltip(bar)),
                canvas.box(x, foot, wide, kept, still) if kept else None,
                canvas.box(x, foot - rest, wide, rest, moved) if rest else None,
            )
        )
    low, most = min(bar.after for bar in bars), max(bar.after for bar in bars)
    sizes = numbers.count(low)
    if most > low:
        sizes += f" \N{EN DASH} {numbers.count(most)}"
    change = numbers.change(sum(b.before for b in bars), sum(b.after for b in bars))
    middle = y + 15.0 if page.narrow else y + row / 2 + 3.0
    return join(_words(page, first, middle, sizes, change), *pieces)
