"""Seconds and memory against the number of nodes, both on logarithmic scales, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esper.report.markup import el
from esper.report.svg import Canvas, text_at

PLOT = Path(__file__).resolve().parents[2] / "docs" / "scale.svg"
SERIES = {"analysis s": "analysis, s", "planning s": "planning, s", "peak GB": "peak memory, GB"}
WIDTH, HEIGHT = 640.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 150.0, 14.0, 44.0


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """The picture of a scale result.

    Args:
        rows: each with `nodes` and the fields of `SERIES`, by rising number of nodes.
    """
    values = [float(row[field]) for row in rows for field in SERIES]
    across = _decades([float(row["nodes"]) for row in rows])
    up = _decades(values)
    canvas = Canvas(
        WIDTH,
        "scale",
        "Seconds and memory against nodes",
        "Both scales are logarithmic. The dashed line through the first point of the analysis is "
        "what grows as the number of nodes does.",
    )

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - across[0]) / (across[1] - across[0]) * (
            WIDTH - LEFT - RIGHT
        )

    def y(value: float) -> float:
        share = (math.log10(value) - up[0]) / (up[1] - up[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    for power in range(across[0], across[1] + 1):
        at = x(10.0**power)
        canvas.add(
            el("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="es-grid"),
            text_at(at, HEIGHT - BOTTOM + 17, f"{10**power:,}", class_="es-soft es-num es-mid"),
        )
    for power in range(up[0], up[1] + 1):
        at = y(10.0**power)
        canvas.add(
            el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="es-grid"),
            text_at(LEFT - 8, at + 4, f"{10.0**power:g}", class_="es-soft es-num es-end"),
        )
    canvas.add(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "nodes", class_="es-mid"))
    first, last = rows[0], rows[-1]
    linear = float(first["analysis s"]) * last["nodes"] / first["nodes"]
    ends = (x(first["nodes"]), y(first["analysis s"]), x(last["nodes"]), y(linear))
    canvas.add(el("line", x1=ends[0], y1=ends[1], x2=ends[2], y2=ends[3], class_="es-rule"))
    lowest = HEIGHT
    for field, name in sorted(SERIES.items(), key=lambda item: float(last[item[0]])):
        points = [(x(row["nodes"]), y(float(row[field]))) for row in rows]
        path = "M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        canvas.add(el("path", d=path, fill="none", class_="es-axis"))
        for (a, b), row in zip(points, rows, strict=True):
            title = el("title", f"{row['model']}: {name} {row[field]}")
            canvas.add(el("circle", title, cx=a, cy=b, r=4, class_="es-yes"))
        lowest = min(points[-1][1] + 4, lowest - 15)  # names do not touch
        canvas.add(text_at(points[-1][0] + 10, lowest, name))
    return str(canvas.svg(HEIGHT, standalone=True)) + "\n"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
