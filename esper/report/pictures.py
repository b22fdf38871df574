"""Sections with pictures. Each SVG is drawn for wide and for narrow pages; CSS shows one."""

from __future__ import annotations

from esper.report import numbers
from esper.report.anatomy_svg import draw
from esper.report.data import PHASES, PassTime, ReportData
from esper.report.markup import Markup, el
from esper.report.plot_svg import plot
from esper.report.tables import figures_table, section

_WIDE, _NARROW = 880.0, 344.0


def anatomy_section(data: ReportData) -> Markup:
    """The network before and after, one picture."""
    after = None if data.after is None else data.after.axes
    title = "Anatomy of the model" if after is None else "Anatomy before and after"
    return section(
        "anatomy",
        "Anatomy",
        el("p", _summary(data), class_="soft"),
        *[
            el(
                "figure",
                Markup(
                    draw(
                        data.before.axes,
                        after,
                        title=title,
                        width=width,
                        prefix=f"anatomy-{name}",
                        standalone=False,
                    )
                ),
                class_=name,
            )
            for name, width in (("wide", _WIDE), ("narrow", _NARROW))
        ],
    )


def _summary(data: ReportData) -> str:
    facts = data.after or data.before
    return (
        f"{numbers.count(facts.layers)} layers with parameters among "
        f"{numbers.count(facts.operations)} operations. Bars are as wide as an axis has units; "
        "axes of one kind share a scale."
    )


def plot_section(data: ReportData) -> Markup | None:
    """Quality against speed, with its figures in a table."""
    if not data.points:
        return None
    metric = data.quality.metric if data.quality is not None else "quality"
    table = figures_table(
        ("Candidate", "Accepted", "Speedup", "Interval", metric),
        [
            (
                p.label,
                "yes" if p.accepted else "no",
                numbers.times(p.speedup),
                numbers.interval(p.lower, p.upper),
                numbers.quality(p.quality),
            )
            for p in data.points
        ],
    )
    pictures = [
        el(
            "figure",
            Markup(
                plot(
                    data.points, data.quality, width=width, prefix=f"plot-{name}", standalone=False
                )
            ),
            class_=name,
        )
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    ]
    return section(
        "plot", "Quality against speed", *pictures, el("details", el("summary", "Figures"), table)
    )


def time_section(data: ReportData) -> Markup | None:
    """Seconds by pass and phase."""
    rows = [row for row in data.timing if row.total > 0]
    if not rows:
        return None
    longest = max(row.total for row in rows)
    phases = [phase for phase in _phases(rows) if any(row.seconds.get(phase) for row in rows)]
    legend = el(
        "ul",
        *[
            el(
                "li",
                el("i", class_=f"swatch p{_hue(phase)}"),
                f"{phase} ",
                el(
                    "span",
                    numbers.seconds(sum(row.seconds.get(phase, 0.0) for row in rows)),
                    class_="soft",
                ),
            )
            for phase in phases
        ],
        class_="legend",
    )
    bars = el("div", *[_bar(row, longest, phases) for row in rows], class_="bars")
    table = figures_table(
        ("Pass", *phases, "total"),
        [
            (
                row.pass_name,
                *[_seconds(row.seconds.get(phase)) for phase in phases],
                numbers.seconds(row.total),
            )
            for row in rows
        ],
        words=1,
    )
    return section(
        "time", "Where the time went", legend, bars, el("details", el("summary", "Figures"), table)
    )


def _phases(rows: list[PassTime]) -> list[str]:
    """Known phases in their order, then any others."""
    return list(dict.fromkeys([*PHASES, *(phase for row in rows for phase in row.seconds)]))


def _hue(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _seconds(value: float | None) -> str:
    return numbers.seconds(value) if value else numbers.NONE


def _bar(row: PassTime, longest: float, phases: list[str]) -> Markup:
    pieces = [
        el(
            "i",
            class_=f"p{_hue(phase)}",
            style=f"width:{100 * spent / longest:.3f}%",
            title=f"{phase} {numbers.seconds(spent)}",
        )
        for phase in phases
        if (spent := row.seconds.get(phase, 0.0)) > 0
    ]
    return el(
        "div",
        el("span", row.pass_name, class_="name"),
        el("div", *pieces, class_="bar"),
        el("span", numbers.seconds(row.total), class_="num"),
        class_="time",
    )
