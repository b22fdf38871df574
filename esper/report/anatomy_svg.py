"""The anatomy of a network as a picture: module blocks from top to bottom, one bar per axis.

A bar is as wide as its axis has units; axes of one kind share a scale. What was cut is hatched,
what was grown is striped, what may not be cut is outlined with the reason in its tooltip.
"""

from __future__ import annotations

from collections.abc import Sequence

from esper.report import numbers
from esper.report.anatomy_bars import PAD, Page, columns_of, hue, page_for, row_of
from esper.report.anatomy_layout import Bar, Group, common, layout
from esper.report.data import AxisRow
from esper.report.facts import from_model
from esper.report.markup import Markup, el, join
from esper.report.svg import Canvas, fit, text_at


def draw(
    axes_before: Sequence[AxisRow],
    axes_after: Sequence[AxisRow] | None = None,
    *,
    title: str = "Anatomy",
    width: float = 880.0,
    prefix: str = "anatomy",
    standalone: bool = True,
) -> str:
    """SVG of a network, or of what became of it.

    Args:
        axes_before: axes of the model, of the model as it was when `axes_after` is given.
        axes_after: axes of the changed model; matched by ID.
        width: of the picture in pixels; below 560 labels stand above the bars.
        prefix: of the IDs in the SVG; pictures on one page need different ones.
        standalone: bring the style along, for a file of its own.
    """
    groups = layout(axes_before, axes_after)
    bars = [bar for group in groups for block in group.blocks for bar in block.bars]
    page = page_for(width, bars, prefix)
    canvas = Canvas(width, prefix, title, _describe(groups, bars, axes_after is not None))
    y = _legend(canvas, page, bars, common([p for row in axes_before for p in row.modules]))
    for group in groups:
        y = _group(canvas, page, group, y) + 12.0
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


def _legend(canvas: Canvas, page: Page, bars: Sequence[Bar], shared: tuple[str, ...]) -> float:
    kinds = list(dict.fromkeys(bar.kind for bar in bars if bar.frozen is None))
    entries = [(f"es-fill es-k{hue(kind)}", kind) for kind in kinds]
    if any(bar.after < bar.before for bar in bars):
        entries.append(("es-cut", "cut"))
    if any(bar.after > bar.before for bar in bars):
        entries.append(("es-grown", "grown"))
    if any(bar.frozen for bar in bars):
        entries.append(("es-fixed", "fixed"))
    x, y = 0.0, 12.0
    for style, label in entries:
        need = 18.0 + 7.0 * len(label) + 16.0
        if x + need > page.width and x:
            x, y = 0.0, y + 20.0
        canvas.add(canvas.box(x, y - 9, 12, 10, style), text_at(x + 18, y, label, class_="es-soft"))
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


def _group(canvas: Canvas, page: Page, group: Group, y: float) -> float:
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
    canvas.add(_heading(page, group, width, y + 20))
    at = y + 30.0
    for i, bar in enumerate(first.bars):
        if strip:
            canvas.add(columns_of(canvas, page, [block.bars[i] for block in group.blocks], at, row))
        else:
            canvas.add(row_of(canvas, page, bar, at))
        at += row
    return y + height + (6.0 if len(group.blocks) > 1 else 0.0)


def _heading(page: Page, group: Group, width: float, y: float) -> Markup:
    path = group.blocks[0].path
    parent = ".".join(path[:-1])
    own = path[-1]
    times = None
    if len(group.blocks) > 1:
        last = group.blocks[-1].path
        end = last[-1] if last[:-1] == path[:-1] else ".".join(last)
        own = f"{own} \N{HORIZONTAL ELLIPSIS} {end}"
        times = text_at(
            width - PAD,
            y,
            f"{len(group.blocks)} {'alike' if group.alike else 'blocks'}",
            class_="es-soft es-end",
        )
    room = fit(parent, page.width - 120 - 7.5 * len(own), 6.6)
    return join(
        el(
            "text",
            el("tspan", f"{room}." if parent else "", class_="es-soft"),
            el("tspan", own, class_="es-strong"),
            x=PAD,
            y=y,
        ),
        times,
    )


__all__ = ["draw", "from_model"]
