"""Where ours win and where they lose: a small table of colours for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from esper.report.markup import Markup, el
from esper.report.svg import Canvas, text_at

Row = Mapping[str, Any]
_CELL, _HIGH = 46.0, 20.0
_NAMES, _GAP, _TOP, _HEAD = 250.0, 26.0, 52.0, 44.0
_ACROSS = 2  # layers side by side
_STEPS = 4  # colours on either side of a ratio of 1
_LEGEND = ("0.25", "0.4", "0.6", "0.84", "1", "1.2", "1.7", "2.4", "4")


def heat_map(document: Mapping[str, Any], dtype: str, against: str) -> str:
    """SVG: patterns downwards, rows of the input across, one block for each layer.

    A cell shows how many times faster ours are. Pale ones are verdicts of SAME or AMBIGUOUS.

    Args:
        against: `dense`, the dense layer of that dtype, or `best`, the fastest peer.
    """
    cells = [cell for cell in document["cells"] if cell["dtype"] == dtype]
    blocks: dict[str, list[Row]] = {}
    for cell in cells:
        blocks.setdefault(cell["layer"], []).append(cell)
    columns = sorted({cell["m"] for cell in cells})
    wide = _NAMES + _CELL * len(columns)
    across = min(_ACROSS, len(blocks))
    width = max(across * wide + (across - 1) * _GAP, 520.0)
    rival = "the dense layer" if against == "dense" else "the fastest peer"
    title = f"How many times faster than {rival}, {dtype}"
    canvas = Canvas(
        width,
        f"heat-{dtype}-{against}",
        title,
        f"{len(cells)} cells on {document['device']}. Blue is faster, red slower; pale cells could "
        "not be told from the same.",
    )
    canvas.add(text_at(0, 14, title, class_="es-title"), *_legend(width))
    high = _TOP
    layers = list(blocks)
    for start in range(0, len(layers), across):
        tallest = 0.0
        for place, layer in enumerate(layers[start : start + across]):
            left = place * (wide + _GAP)
            tallest = max(tallest, _block(canvas, left, high, blocks[layer], columns, against))
        high += tallest + _GAP
    return str(canvas.svg(high - _GAP + 4, standalone=True)) + "\n"


def _block(
    canvas: Canvas,
    left: float,
    top: float,
    cells: Sequence[Row],
    columns: Sequence[int],
    against: str,
) -> float:
    """One layer; returns its height."""
    first = cells[0]
    canvas.add(
        text_at(left, top + 12, first["layer"], class_="es-strong"),
        text_at(left, top + 27, f"{first['n']} by {first['k']}", class_="es-note es-num"),
    )
    for place, m in enumerate(columns):
        middle = left + _NAMES + (place + 0.5) * _CELL
        canvas.add(text_at(middle, top + _HEAD - 8, f"M {m}", class_="es-note es-num es-mid"))
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for cell in cells:
        rows.setdefault((cell["op"], cell["compression"]), {})[cell["m"]] = cell
    for number, ((op, pattern), by_m) in enumerate(rows.items()):
        y = top + _HEAD + number * _HIGH
        shared = sum(other == pattern for _, other in rows) > 1
        name = f"{pattern}, {op}" if shared or pattern == "dense" else pattern
        canvas.add(text_at(left + _NAMES - 8, y + 14, name, class_="es-soft es-end"))
        for place, m in enumerate(columns):
            if m in by_m:
                canvas.add(_cell(left + _NAMES + place * _CELL, y, by_m[m], against))
    return _HEAD + len(rows) * _HIGH


def _cell(x: float, y: float, cell: Row, against: str) -> Markup:
    ratio, outcome = cell[f"{against}_ratio"], cell[f"{against}_outcome"]
    sure = outcome in ("FAST", "SLOW")
    said = (
        f"{cell['op']} {cell['compression']}, M {cell['m']}: {ratio:.2f} "
        f"[{cell[f'{against}_lower']:.2f}, {cell[f'{against}_upper']:.2f}] {outcome}"
    )
    if against == "best":
        said += f", best peer {cell['peer']}"
    step = _step(ratio)
    shade = f"es-h{step}" + ("" if sure else " es-pale")
    ink = " es-soft" if not sure else " es-light" if abs(step - _STEPS) > 2 else ""
    return el(
        "g",
        el("title", said),
        el("rect", x=x + 1, y=y + 1, width=_CELL - 2, height=_HIGH - 2, rx=2, class_=shade),
        text_at(x + _CELL / 2, y + 14, _short(ratio), class_=f"es-num es-mid{ink}"),
    )


def _step(ratio: float) -> int:
    """0 (a quarter or less) to 8 (four times or more); 4 is about the same."""
    return round(min(max(2 * log2(ratio), -_STEPS), _STEPS)) + _STEPS


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 1.95 else f"{ratio:.2f}"


def _legend(width: float) -> list[Markup]:
    parts: list[Markup] = []
    wide = 34.0
    left = width - wide * len(_LEGEND)
    for number, label in enumerate(_LEGEND):
        x = left + number * wide
        parts += [
            el("rect", x=x, y=22, width=wide - 2, height=9, rx=2, class_=f"es-h{number}"),
            text_at(x + wide / 2 - 1, 43, label, class_="es-note es-num es-mid"),
        ]
    return parts
