"""Sections and tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

from esper.report.markup import Markup, el


def section(name: str, title: str, *children: Markup | None) -> Markup:
    """A section with a heading that can be linked to."""
    return el(
        "section",
        el("h2", title, id=f"{name}-heading"),
        *children,
        id=name,
        aria_labelledby=f"{name}-heading",
    )


def figures_table(
    heads: Sequence[str], rows: Sequence[Sequence[Markup | str]], words: int = 2
) -> Markup:
    """A table whose first `words` columns are words and whose others are aligned numbers.

    A cell that is markup is taken as the finished cell. Cells repeat their heading for narrow
    screens, where rows become cards.
    """
    return el(
        "div",
        el(
            "table",
            el(
                "thead",
                el(
                    "tr",
                    *[
                        el("th", head, scope="col", class_=None if i < words else "num")
                        for i, head in enumerate(heads)
                    ],
                ),
            ),
            el(
                "tbody",
                *[
                    el(
                        "tr",
                        *[
                            _cell(cell, i < words, head)
                            for i, (cell, head) in enumerate(zip(row, heads, strict=True))
                        ],
                    )
                    for row in rows
                ],
            ),
        ),
        class_="scroll",
    )


def _cell(cell: Markup | str, word: bool, head: str) -> Markup:
    if isinstance(cell, Markup):
        return Markup(cell.replace("<td", f'<td data-label="{head}"', 1))
    return el("td", cell, class_=None if word else "num", data_label=head)
