"""The page: one self-contained file that reads the same offline, printed and without scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from esper.report import numbers
from esper.report.data import ModelFacts, ReportData
from esper.report.headline import headline
from esper.report.markup import Markup, el, join
from esper.report.pictures import anatomy_section, plot_section, time_section
from esper.report.proposals import proposals_section, records_section
from esper.report.svg import style
from esper.report.tables import figures_table, section


def render(data: ReportData) -> str:
    """The page as text. The same data give the same bytes; nothing in the data becomes markup."""
    sections = [
        _measurements(data),
        proposals_section(data),
        anatomy_section(data),
        plot_section(data),
        time_section(data),
        _notes(data),
        _environment(data),
        records_section(data),
    ]
    return document(f"{data.title}: Esper report", _top(data), *sections)


def document(title: str, top: Markup, *sections: Markup | None) -> str:
    """A whole page around its parts, with the style and the script that all pages share."""
    page = el(
        "html",
        _head(title),
        el(
            "body",
            el("main", top, *sections),
            el("footer", "Made by Esper. This file needs no network and sends nothing."),
            el("script", _script()),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"


@cache
def _asset(name: str) -> Markup:
    return Markup(files("esper.report").joinpath(name).read_text(encoding="utf-8"))


def _script() -> Markup:
    return _asset("page.js")


def _head(title: str) -> Markup:
    # The policy names the one script by digest: markup that slipped in could still run nothing.
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", _asset("page.css"), style()),
    )


def _top(data: ReportData) -> Markup:
    command = el("pre", el("code", data.command), class_="command") if data.command else None
    return el(
        "header",
        el("p", data.title, class_="eyebrow"),
        el("h1", *_unbroken(headline(data))),
        el("dl", *_tiles(data), class_="tiles"),
        command,
    )


def _unbroken(sentence: str) -> list[Markup | str]:
    """The sentence with each figure and its interval kept on one line."""
    pieces = re.split(rf"({numbers.TIMES}\S+(?: \[[^\]]*\])?)", sentence)
    return [
        el("span", piece, class_="figure") if i % 2 else piece for i, piece in enumerate(pieces)
    ]


def _tiles(data: ReportData) -> list[Markup]:
    tiles = []
    if data.final is not None:
        span = numbers.interval(data.final.lower, data.final.upper)
        tiles.append(_tile("Speed", numbers.times(data.final.speedup), span))
    tiles += _size_tiles(data.before, data.after or data.before)
    quality = data.quality
    if quality is not None:
        after = quality.before if quality.after is None else quality.after
        note = f"of {numbers.quality(quality.before)}"
        if quality.floor is not None:
            note += f", at least {numbers.quality(quality.floor)}"
        tiles.append(
            _tile(quality.metric[:1].upper() + quality.metric[1:], numbers.quality(after), note)
        )
    asked = [r for r in data.records if r.proposal is not None]
    passed = sum(r.kind == "passed" for r in asked)
    tiles.append(_tile("Proposals", numbers.count(passed), f"passed of {len(asked)}"))
    if data.exact is not None:
        note = "equal to the masked original" if data.exact else "not every change is"
        if data.finetuned:
            note = "weights were fine-tuned"
        tiles.append(_tile("Exact", "yes" if data.exact else "no", note))
    return tiles


def _size_tiles(before: ModelFacts, after: ModelFacts) -> list[Markup]:
    return [
        _tile(
            label,
            show(new),
            f"of {show(old)} {numbers.change(old, new)}".rstrip() if new != old else "unchanged",
        )
        for label, show, old, new in (
            ("Parameters", numbers.count, before.parameters, after.parameters),
            ("Size", numbers.size, before.bytes, after.bytes),
            ("Layers", numbers.count, before.layers, after.layers),
        )
        if new != old or label != "Layers"
    ]


def _tile(label: str, value: str, note: str) -> Markup:
    return el(
        "div", el("dt", label), el("dd", value, class_="value"), el("dd", note, class_="note")
    )


def _measurements(data: ReportData) -> Markup | None:
    rows = [*([data.final] if data.final is not None else []), *data.verdicts]
    if not rows:
        return section("measurements", "Measurements", el("p", "Nothing was measured."))
    table = figures_table(
        ("What", "Verdict", "Speedup", "Interval", "p", "Rounds", "Before", "After"),
        [
            (
                el("td", row.label, el("small", row.reason) if row.reason else None),
                el("td", el("span", row.outcome, class_=f"badge {row.outcome}")),
                numbers.times(row.speedup),
                numbers.interval(row.lower, row.upper),
                numbers.probability(row.p),
                numbers.NONE if row.rounds is None else numbers.count(row.rounds),
                _step(row.baseline_ms, row.baseline_backend),
                _step(row.candidate_ms, row.candidate_backend),
            )
            for row in rows
        ],
    )
    return section("measurements", "Measurements", table)


def _step(milliseconds: float | None, backend: str) -> Markup:
    return el(
        "td",
        numbers.milliseconds(milliseconds),
        el("small", backend) if backend else None,
        class_="num",
    )


def _notes(data: ReportData) -> Markup | None:
    if not data.notes:
        return None
    return section("notes", "Limits and notes", el("ul", *[el("li", note) for note in data.notes]))


def _environment(data: ReportData) -> Markup | None:
    if not data.environment:
        return None
    rows = [el("div", el("dt", key), el("dd", value)) for key, value in data.environment.items()]
    return section("environment", "Environment", el("dl", join(*rows), class_="facts"))
