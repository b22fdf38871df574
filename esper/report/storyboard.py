"""The page of a storyboard, in the frame and the style of the report of an optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from esper.report.curves_svg import curves
from esper.report.html import document
from esper.report.markup import Markup, el
from esper.report.tables import figures_table, section

if TYPE_CHECKING:
    from esper.demo.page import Page, Table

_SIZES = (("wide", 880.0), ("narrow", 344.0))


def render(page: Page, environment: Mapping[str, str] | None = None) -> str:
    """The page as text; it needs no network. The same data give the same bytes."""
    top = el(
        "header",
        el("p", f"{page.stage}: {page.claim}", class_="eyebrow"),
        el("h1", page.finding[:1].upper() + page.finding[1:]),
        el("p", "The claim holds." if page.holds else "The claim does not hold.", class_="soft"),
        el("pre", el("code", page.command), class_="command") if page.command else None,
    )
    sections = [
        *[_table(i, table) for i, table in enumerate(page.every_table())],
        _pairs(page),
        _picture(page),
        *[
            section(f"excerpt-{i}", excerpt.title, el("pre", excerpt.text))
            for i, excerpt in enumerate(page.excerpts)
        ],
        _notes(page),
        _environment(environment or {}),
    ]
    return document(f"{page.stage}: {page.finding}", top, *sections)


def _table(index: int, table: Table) -> Markup:
    return section(
        f"table-{index}", table.title, figures_table(table.heads, table.rows, table.words)
    )


def _pairs(page: Page) -> Markup | None:
    if not page.pairs:
        return None
    items = [el("li", pair.sentence()) for pair in page.pairs]
    return section("pairs", "Paired seeds", el("ul", *items))


def _picture(page: Page) -> Markup | None:
    if not page.curves:
        return None
    drawn = [
        el(
            "figure",
            Markup(
                curves(
                    page.curves,
                    page.marks,
                    vertical=page.vertical,
                    width=width,
                    prefix=f"curves-{name}",
                    standalone=False,
                )
            ),
            class_=name,
        )
        for name, width in _SIZES
    ]
    rows = [(f"{mark.tick}", mark.text, mark.code) for mark in page.marks]
    marked = figures_table(("Tick", "Change", "Event"), rows, words=3) if rows else None
    return section("curves", f"{page.vertical.capitalize()} over ticks", *drawn, marked)


def _notes(page: Page) -> Markup | None:
    if not page.notes:
        return None
    return section("notes", "Limits and notes", el("ul", *[el("li", n) for n in page.notes]))


def _environment(environment: Mapping[str, str]) -> Markup | None:
    if not environment:
        return None
    rows = [el("div", el("dt", key), el("dd", value)) for key, value in environment.items()]
    return section("environment", "Environment", el("dl", *rows, class_="facts"))
