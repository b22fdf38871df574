"""Every proposal with what became of it, by pass; and the full records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from esper.records import Record
from esper.report import numbers
from esper.report.data import ReportData
from esper.report.markup import Markup, el, join
from esper.report.tables import section

KINDS = ("passed", "missed", "failure", "analysis")
OPEN_UP_TO = 12
"""Passes with more records than this start folded."""


def proposals_section(data: ReportData) -> Markup:
    """Records grouped by pass, in the order in which passes first speak."""
    if not data.records:
        return section("proposals", "Proposals", el("p", "No pass proposed anything."))
    groups: dict[str, list[tuple[int, Record]]] = {}
    for number, record in enumerate(data.records):
        groups.setdefault(_group(record), []).append((number, record))
    return section(
        "proposals",
        "Proposals",
        _filter(data.records),
        *[_pass(name, rows) for name, rows in groups.items()],
        el("p", "No record matches.", class_="soft", id="no-match", hidden=True),
    )


def records_section(data: ReportData) -> Markup | None:
    """Each record as JSON, folded."""
    if not data.records:
        return None
    return section(
        "records",
        "Records",
        *[
            el(
                "details",
                el("summary", el("span", f"{number}", class_="index"), record.line()),
                el("pre", el("code", _json(record))),
                id=f"record-{number}",
                class_="record",
            )
            for number, record in enumerate(data.records)
        ],
    )


def _json(record: Record) -> str:
    """Indented JSON with lists of numbers on one line: they can be thousands of units long."""
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda m: re.sub(r"\s+", " ", m.group()), text)


def _group(record: Record) -> str:
    if record.pass_name:
        return record.pass_name
    return record.proposal.proposer if record.proposal is not None else "remarks"


def _filter(records: Sequence[Record]) -> Markup:
    counts = _counts(records)
    boxes = [
        el(
            "label",
            el("input", type="checkbox", value=kind, checked=True),
            el("span", kind, class_=f"badge {kind}"),
            el("span", f"{n}", class_="soft"),
        )
        for kind, n in counts
    ]
    search = el(
        "label",
        el("span", "Search", class_="hidden"),
        el("input", type="search", id="search", placeholder="Search reason, code, node"),
    )
    # Useless without the script, which reveals it.
    return el("form", *boxes, search, id="filter", hidden=True, aria_label="Filter records")


def _counts(records: Iterable[Record]) -> list[tuple[str, int]]:
    kinds = [record.kind for record in records]
    return [(kind, kinds.count(kind)) for kind in KINDS if kind in kinds]


def _pass(name: str, rows: Sequence[tuple[int, Record]]) -> Markup:
    tally = ", ".join(f"{n} {kind}" for kind, n in _counts(record for _, record in rows))
    heads = ("Outcome", "Proposal", "Reason", "Code", "Node")
    table = el(
        "table",
        el("thead", el("tr", *[el("th", head, scope="col") for head in heads])),
        el("tbody", *[_row(number, record) for number, record in rows]),
        class_="records",
    )
    return el(
        "details",
        el("summary", el("strong", name), el("span", tally, class_="soft")),
        el("div", table, class_="scroll"),
        class_="pass",
        open=len(rows) <= OPEN_UP_TO,
    )


def _row(number: int, record: Record) -> Markup:
    proposal = record.proposal
    what = proposal.type if proposal is not None else "remark"
    targets = [_id(target) for target in (proposal.targets if proposal is not None else ())]
    more = el("small", f"and {len(targets) - 3} more") if len(targets) > 3 else None
    remedy = el("small", record.remedy, class_="remedy") if record.remedy else None
    return el(
        "tr",
        el("td", el("span", record.kind, class_=f"badge {record.kind}"), data_label="Outcome"),
        el(
            "td",
            el("a", what, href=f"#record-{number}"),
            join(*targets[:3]),
            more,
            data_label="Proposal",
        ),
        el("td", _breakable(record.reason), remedy, _figures(record), data_label="Reason"),
        el("td", el("code", record.code), data_label="Code"),
        el(
            "td",
            _id(record.node) if record.node else numbers.NONE,
            data_label="Node",
            class_=None if record.node else "none",
        ),
        data_kind=record.kind,
    )


def _id(name: str) -> Markup:
    return el("code", _breakable(name))


def _breakable(words: str) -> Markup:
    """Text whose dotted IDs break between their parts."""
    pieces = re.split(r"(?<=[./])(?=[^\s\d])", words)
    return join(pieces[0], *[join(el("wbr"), piece) for piece in pieces[1:]])


def _figures(record: Record) -> Markup | None:
    """The plain numbers among the figures; the rest is in the record below."""
    shown = [
        f"{key.replace('_', ' ')} {value:,}"
        if isinstance(value, int)
        else f"{key.replace('_', ' ')} {value:.4g}"
        for key, value in record.figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return el("small", " · ".join(shown[:6]), class_="figures") if shown else None
