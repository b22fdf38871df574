"""Writes measured figures and captured output into the marked regions of README.md and docs.

    python -m benchmarks.readme            # rewrite the regions
    python -m benchmarks.readme --check    # exit 1 if that would change anything

`<!-- figures:NAME -->` shows benchmarks/results/NAME.json as a table; `columns=a,b` behind the name
chooses columns, `where=COLUMN:VALUE` rows, and `table=KEY` another table of the file, which is then
shown alone. `<!-- capture:NAME -->` shows docs/captures/NAME.txt.
A region ends with `<!-- /figures -->` or `<!-- /capture -->`. Nothing in a region is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CAPTURES = ROOT / "docs" / "captures"

_REGION = re.compile(
    r"(<!-- (figures|capture):([\w-]+)([^>\n]*?) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL
)
_START = re.compile(r"<!-- /?(?:figures|capture)\b")


def pages() -> list[Path]:
    """README, the documentation, and the pages of the kernels."""
    kernels = sorted((ROOT / "kernels").glob("**/README.md"))
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *kernels]


def rewrite(page: str, results: Path = RESULTS, captures: Path = CAPTURES) -> str:
    """The page with every region made anew.

    Raises ValueError for a region that is not closed, and for a column that a result does not have.
    """

    def region(match: re.Match[str]) -> str:
        opening, kind, name, options, _, closing = match.groups()
        if kind == "figures":
            body = _figures(results / f"{name}.json", name, _options(options))
        else:
            body = _capture(captures / f"{name}.txt")
        return f"{opening}{body}\n{closing}"

    marks = len(_START.findall(page))
    if marks != 2 * len(_REGION.findall(page)):
        raise ValueError("a region of figures or captured output is not closed")
    return _REGION.sub(region, page)


def _options(text: str) -> dict[str, str]:
    """`a=b c="d e"` as a mapping."""
    found = re.findall(r"(\w+)=(?:\"([^\"]*)\"|(\S+))", text)
    return {key: quoted or plain for key, quoted, plain in found}


def _capture(path: Path) -> str:
    if not path.exists():
        return "*not captured yet*"
    return f"```text\n{path.read_text().rstrip()}\n```"


def _figures(path: Path, name: str, options: Mapping[str, str]) -> str:
    if not path.exists():
        return f"*not measured yet (`python -m benchmarks {name}` does)*"
    return render(json.loads(path.read_text()), options)


def render(data: Mapping[str, Any], options: Mapping[str, str] | None = None) -> str:
    """A result file as markdown: title, table, notes, and what it was measured on."""
    options = options or {}
    if "table" in options:
        data = {"rows": data[options["table"]]}
    rows: list[dict[str, Any]] = list(data["rows"])
    every = list(dict.fromkeys([*data.get("columns", ()), *(k for row in rows for k in row)]))
    columns = options["columns"].split(",") if "columns" in options else every
    chosen, _, value = options.get("where", "").partition(":")
    for column in [*columns, *filter(None, [chosen])]:
        if column not in every:
            raise ValueError(f"there is no column {column!r}; there are {', '.join(every)}")
    if chosen:
        rows = [row for row in rows if _cell(chosen, row.get(chosen)) == value]
    lines = [f"**{data['title']}**", ""] if "title" in data else []
    lines += _table(columns, rows)
    if notes := data.get("notes"):
        lines += ["", *([f"- {note}" for note in notes] if len(notes) > 1 else notes)]
    if measured := _measured_on(data):
        lines += ["", measured]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    numeric = {c for c in columns if all(_is_number(row.get(c)) for row in rows)}
    lines = [
        "| " + " | ".join(c.replace("_", " ") for c in columns) + " |",
        "| " + " | ".join("---:" if c in numeric else "---" for c in columns) + " |",
    ]
    body = (" | ".join(_cell(c, row.get(c)) for c in columns) for row in rows)
    return [*lines, *(f"| {cells} |" for cells in body)]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(column: str, value: Any) -> str:
    """Four significant digits; columns that start with `rate` are percentages."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if column.startswith("rate"):
            return f"{value:.1%}"
        whole = value.is_integer() and abs(value) < 1e15
        return f"{value:.1f}" if whole else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(column, item) for item in value)
    return str(value).replace("|", "\\|")


def _measured_on(data: Mapping[str, Any]) -> str:
    """One line: device, threads, versions and command, from either form of result file."""
    found: Mapping[str, Any] = data.get("environment", data)
    device = found.get("device_name", found.get("device"))
    versions = dict(found.get("versions", {}))
    if "python" in found:
        versions.setdefault("python", found["python"])
    parts = [str(device)] if device else []
    if threads := found.get("threads"):
        parts.append(f"{threads} thread" + ("s" if threads != 1 else ""))
    parts += [f"{name} {version}" for name, version in sorted(versions.items())]
    if not parts:
        return ""
    command = f" (`{data['command']}`)" if "command" in data else ""
    return f"<sub>{', '.join(parts)}{command}</sub>"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write figures into README.md and docs.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if stale")
    options = parser.parse_args()
    stale = []
    for page in pages():
        before = page.read_text()
        after = rewrite(before)
        if after != before:
            stale.append(page)
            if not options.check:
                page.write_text(after)
    for page in stale:
        print(f"{'stale' if options.check else 'rewrote'}: {page.relative_to(ROOT)}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
