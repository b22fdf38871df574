"""The anatomy of a network as a picture: module blocks from top to bottom, one bar per axis.

A bar is as wide as its axis has units; axes of one kind share a scale. What was cut is hatched,
what was grown is striped, what may not be cut is outlined with the reason in its tooltip. Where
shares are known, a line along the top of each block is as long as its share of the parameters, and
one below it as its share of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esper.report import numbers
from esper.report.anatomy_bars import PAD, Page, columns_of, hue, page_for, row_of
from esper.report.anatomy_layout import Bar, Group, common, layout
from esper.report.data import AxisRow
from esper.report.facts import from_model
from esper.report.markup import Markup, el, join
from esper.report.svg import Canvas, fit, text_at


@dataclass(frozen=True)
class Shares:
    """What each module, by dotted path, holds of the whole: numbers from 0 to 1.

    Attributes:
        parameters: of the parameter values.
        time: of the measured time; empty where none was taken.
    """

    parameters: Mapping[str, float] = field(default_factory=dict)
    time: Mapping[str, float] = field(default_factory=dict)


def draw(
    axes_before: Sequence[AxisRow],
    axes_after: Sequence[AxisRow] | None = None,
    *,
    title: str = "Anatomy",
    width: float = 880.0,
    prefix: str = "anatomy",
    standalone: bool = True,
    facts: str = "",
    shares: Shares | None = None,
) -> str:
    """SVG of a network, or of what became of it.

    Args:
        axes_before: axes of the model, of the model as it was when `axes_after` is given.
        axes_after: axes of the changed model; matched by ID.
        width: of the picture in pixels; below 560 labels stand above the bars.
        prefix: of the IDs in the SVG; pictures on one page need different ones.
        standalone: bring title, margins and the style along, for a file of its own.
        facts: about the model, in a few words below the title of a file of its own.
        shares: of parameters and time, for the heading of each block.
    """
    groups = layout(axes_before, axes_after)
    bars = [bar for group in groups for block in group.blocks for bar in block.bars]
    page = page_for(width, bars, prefix)
    about = _describe(groups, bars, axes_after is not None)
    canvas = Canvas(width, prefix, title, about)
    y = _title(canvas, page, title, [facts, about]) if standalone else 0.0
    shared = common([p for row in axes_before for p in row.modules])
    y = _legend(canvas, page, bars, shared, shares or Shares(), y)
    for group in groups:
        y = _group(canvas, page, group, y, _Held.of(group, shared, shares or Shares())) + 12.0
    if not groups:
        canvas.add(text_at(0, y + 16, "No axis lives in a parameter.", class_="es-soft"))
        y += 28.0
    return canvas.svg(y, standalone)


def _describe(groups: Sequence[Group], bars: Sequence[Bar], compared: bool) -> str:
    blocks = sum(len(group.blocks) for group in groups)
    frozen = sum(bar.frozen is not None for bar in bars)
    text = f"{len(bars)} axes in {blocks} blocks, {frozen} of them fixed."
    if compared:
        cut = [bar for bar in bars if bar.after < bar.before]
        grown = sum(bar.after > bar.before for bar in bars)
        units = sum(bar.before - bar.after for bar in cut)
        text += f" {numbers.count(units)} units were cut from {len(cut)} axes; {grown} axes grew."
    return text


def _title(canvas: Canvas, page: Page, title: str, lines: Sequence[str]) -> float:
    canvas.add(text_at(0, 14, fit(title, page.width, 8.5), class_="es-title"))
    y = 14.0
    for line in filter(None, lines):
        y += 20.0
        canvas.add(text_at(0, y, fit(line, page.width, 6.6), class_="es-soft"))
    return y + 16.0


@dataclass(frozen=True)
class _Held:
    """Share of the parameters and of the time that the blocks of a group hold together."""

    parameters: float | None
    time: float | None

    @classmethod
    def of(cls, group: Group, shared: tuple[str, ...], shares: Shares) -> _Held:
        paths = [".".join((*shared, *block.path)) for block in group.blocks]

        def total(known: Mapping[str, float]) -> float | None:
            found = [known[path] for path in paths if path in known]
            return sum(found) if found else None

        return cls(total(shares.parameters), total(shares.time))

    def text(self) -> str:
        words = []
        if self.parameters is not None:
            words.append(f"{self.parameters:.1%} of parameters")
        if self.time is not None:
            words.append(f"{self.time:.1%} of time")
        return ", ".join(words)


def _legend(
    canvas: Canvas,
    page: Page,
    bars: Sequence[Bar],
    shared: tuple[str, ...],
    shares: Shares,
    top: float,
) -> float:
    kinds = list(dict.fromkeys(bar.kind for bar in bars if bar.frozen is None))
    entries = [(f"es-fill es-k{hue(kind)}", kind) for kind in kinds]
    if any(bar.after < bar.before for bar in bars):
        entries.append(("es-cut", "cut"))
    if any(bar.after > bar.before for bar in bars):
        entries.append(("es-grown", "grown"))
    if any(bar.frozen for bar in bars):
        entries.append(("es-fixed", "fixed"))
    if shares.parameters:
        entries.append(("es-share", "share of parameters"))
    if shares.time:
        entries.append(("es-time", "share of time"))
    x, y = 0.0, top + 12.0
    for style, label in entries:
        need = 18.0 + 7.0 * len(label) + 16.0
        if x + need > page.width and x:
            x, y = 0.0, y + 20.0
        line = style in ("es-share", "es-time")
        swatch = canvas.box(x, y - (5 if line else 9), 12, 2 if line else 10, style)
        canvas.add(swatch, text_at(x + 18, y, label, class_="es-soft"))
        x += need
    if shared:
        y += 20.0
        where = fit(f"All names lie within {'.'.join(shared)}", page.width, 6.6)
        canvas.add(
            text_at(
                0,
                y,
                where,
                class_="es-soft",
            )
        )
    return y + 18.0


def _group(canvas: Canvas, page: Page, group: Group, y: float, held: _Held) -> float:
    first = group.blocks[0]
    strip = not group.alike
    row = 64.0 if strip and page.narrow else 50.0 if strip else page.row
    height = 30.0 + row * len(first.bars) + 6.0
    if len(group.blocks) > 1:
        for shift in (6.0, 3.0):
            canvas.add(
                el(
                    "rect",
                    x=shift,
                    y=y + shift,
                    width=page.width - 6,
                    height=height,
                    rx=6,
                    class_="es-card",
                )
            )
    width = page.width - (6.0 if len(group.blocks) > 1 else 0.0)
    canvas.add(el("rect", x=0, y=y, width=width, height=height, rx=6, class_="es-card"))
    for line, share in enumerate((held.parameters, held.time)):
        if share is not None:
            style = ("es-share", "es-time")[line]
            canvas.add(canvas.box(PAD, y + 3 * line, (width - 2 * PAD) * share, 2, style))
    canvas.add(_heading(page, group, width, y + 20, held))
    at = y + 30.0
    for i, bar in enumerate(first.bars):
        if strip:
            canvas.add(columns_of(canvas, page, [block.bars[i] for block in group.blocks], at, row))
        else:
            canvas.add(row_of(canvas, page, bar, at))
        at += row
    return y + height + (6.0 if len(group.blocks) > 1 else 0.0)


def _heading(page: Page, group: Group, width: float, y: float, held: _Held) -> Markup:
    path = group.blocks[0].path
    parent = ".".join(path[:-1])
    own = path[-1]
    words = [] if page.narrow or not held.text() else [held.text()]
    if len(group.blocks) > 1:
        last = group.blocks[-1].path
        end = last[-1] if last[:-1] == path[:-1] else ".".join(last)
        own = f"{own} \N{HORIZONTAL ELLIPSIS} {end}"
        words.insert(0, f"{len(group.blocks)} {'alike' if group.alike else 'blocks'}")
    right = ", ".join(words)
    room = fit(parent, page.width - 60 - 7.5 * len(own) - 6.6 * len(right), 6.6)
    return join(
        el(
            "text",
            el("tspan", f"{room}." if parent else "", class_="es-soft"),
            el("tspan", own, class_="es-strong"),
            x=PAD,
            y=y,
        ),
        text_at(width - PAD, y, right, class_="es-soft es-end") if right else None,
    )


__all__ = ["Shares", "draw", "from_model"]
