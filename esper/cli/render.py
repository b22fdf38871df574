"""What `esper-opt` prints: a table of verdicts and a summary, or one JSON object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.optimization import Result
    from esper.records import Kind, Record

_MOST_ROWS = 24
_WORDS = {"passed": "kept", "missed": "refused", "failure": "failed", "analysis": "noted"}
_STYLES = {"passed": "green", "missed": "yellow", "failure": "red", "analysis": "dim"}


def show(
    result: Result, notes: Sequence[str], written: str | None, *, everything: bool = False
) -> None:
    """Print the summary to standard output, in colour on a terminal.

    Args:
        notes: sentences, printed last.
        written: path of the model that was written, or None.
        everything: analyses too, and no grouping of long lists.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 120))
    _print(console, result, notes, written, everything)


def _print(
    console: Any, result: Result, notes: Sequence[str], written: str | None, everything: bool
) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = rows(result.records, everything=everything)
    if shown:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("pass", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        table.add_column("what", overflow="fold", ratio=2)
        table.add_column("why", overflow="fold", ratio=3)
        for record, count in shown:
            word = _WORDS[record.kind] + (f" x{count}" if count > 1 else "")
            table.add_row(
                Text(record.pass_name or "user"),
                Text(word, style=_STYLES[record.kind]),
                Text(_what(record, count)),
                Text(_why(record)),
            )
        console.print(table)
        console.print()
    for line in result.summary().splitlines():
        console.print(Text(line))
    if result.committed:
        console.print(Text(_exactness(result)))
    if written is not None:
        console.print(Text(f"wrote {written}"))
    for note in notes:
        console.print(Text(f"note: {note}", style="dim"))


def rows(records: Sequence[Record], *, everything: bool = False) -> list[tuple[Record, int]]:
    """Decisions with how many they stand for: long lists are grouped by pass, verdict and code."""
    if everything:
        return [(record, 1) for record in records]
    records = [record for record in records if record.kind != "analysis"]
    if len(records) <= _MOST_ROWS:
        return [(record, 1) for record in records]
    counts = Counter((r.pass_name, r.kind, r.code) for r in records)
    first: dict[tuple[str, Kind, str], Record] = {}
    for record in records:
        first.setdefault((record.pass_name, record.kind, record.code), record)
    return [(record, counts[key]) for key, record in first.items()]


def _what(record: Record, count: int) -> str:
    if record.proposal is None:
        return record.node or ""
    targets = record.proposal.targets
    shown = ", ".join(targets[:2]) + (f" and {len(targets) - 2} more" if len(targets) > 2 else "")
    text = f"{record.proposal.type} {shown}".strip()
    return f"{text} and {count - 1} other proposals" if count > 1 else text


def _why(record: Record) -> str:
    text = f"{record.reason} [{record.code}]"
    return f"{text}; {record.remedy}" if record.remedy and record.kind != "passed" else text


def _exactness(result: Result) -> str:
    if result.exact:
        cut = any(r.proposal and r.proposal.type == "prune-units" for r in result.committed)
        to = ": the model as it was with the units that were cut at zero" if cut else ""
        return f"every kept change is exact{to}"
    tolerances = Counter(str(r.figures.get("tolerance", "lossy")) for r in result.committed)
    kept = ", ".join(f"{n} {t}" for t, n in tolerances.items())
    if result.finetuned:
        return f"weights were fine-tuned, so outputs differ; the kept changes themselves: {kept}"
    return f"kept changes by tolerance: {kept}"


def as_json(result: Result, **more: Any) -> str:
    """The result as one JSON object on one line; `more` is added to it."""
    kinds = Counter(r.kind for r in result.records if r.proposal is not None)
    found: dict[str, Any] = {
        "pipeline": result.pipeline,
        "committed": kinds["passed"],
        "refused": kinds["missed"],
        "failed": kinds["failure"],
        "exact": result.exact if result.committed else None,
        "finetuned": result.finetuned,
        "backend": result.backend,
        "speedup": result.speedup,
        "verdict": None if result.verdict is None else result.verdict.model_dump(mode="json"),
        "judgements": [
            {
                "what": what,
                "accepted": judgement.accepted,
                "code": judgement.code,
                "reason": judgement.reason,
                "figures": judgement.figures,
            }
            for what, judgement in result.judgements
        ],
        "quality": result.quality or None,
        "kernels": list(result.model.kernel_ops),
        "bytes": [result.baseline.nbytes(), result.model.nbytes()],
        "parameters": [_parameters(result.baseline), _parameters(result.model)],
        "records": [record.model_dump(mode="json") for record in result.records],
        **more,
    }
    return dumps(found)


def dumps(value: Any) -> str:
    """JSON text of plain data; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
