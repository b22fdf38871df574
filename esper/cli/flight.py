"""`esper log` and `esper why`: reading flight records."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.errors import UsageError

_FORMATS = ("parquet", "perfetto", "tensorboard", "mlflow")
_NAMES = "parquet, perfetto, tensorboard or mlflow"


def log_command(done: Callable[[int], None]) -> Callable[..., None]:
    """The command `esper log`."""

    def log(
        path: Annotated[Path, typer.Argument(metavar="LOG", help="A flight record, .esperlog.")],
        verify: Annotated[
            bool, typer.Option("--verify", help="Check the hash chain; exit 1 on damage.")
        ] = False,
        sql: Annotated[
            str | None, typer.Option(metavar="QUERY", help="Query the table events (DuckDB).")
        ] = None,
        export: Annotated[
            str | None, typer.Option(metavar="FORMAT", help=f"{_NAMES}; needs -o.")
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                "-o",
                "--output",
                metavar="FILE",
                help="Where to export to (a directory for tensorboard and mlflow).",
            ),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print tracebacks.")] = False,
    ) -> None:
        """Summarise, verify, query or export a flight record."""
        if sum((verify, sql is not None, export is not None)) > 1:
            raise UsageError("--verify, --sql and --export exclude one another")
        if output is not None and export is None:
            raise UsageError(f"-o is where --export writes: add --export {_NAMES}")
        if verify:
            done(_verify(path, as_json))
        elif sql is not None:
            done(_sql(path, sql, as_json))
        elif export is not None:
            done(_export(path, export, output, as_json))
        else:
            done(_summary(path, as_json))

    return log


def why_command(done: Callable[[int], None]) -> Callable[..., None]:
    """The command `esper why`."""

    def why(
        path: Annotated[Path, typer.Argument(metavar="LOG", help="A flight record, .esperlog.")],
        code: Annotated[
            str, typer.Argument(metavar="CODE", help="Code of an event, or its start.")
        ],
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print tracebacks.")] = False,
    ) -> None:
        """Explain one event: what led to it, and what it led to."""
        from esper.recorder.log import Log
        from esper.recorder.why import why as explain
        from esper.recorder.why import why_data

        log = Log(path)
        event = log.find(code)
        _print(why_data(log, event) if as_json else explain(log, event))
        done(0)

    return why


def _verify(path: Path, as_json: bool) -> int:
    import dataclasses

    from esper.recorder.chain import verify_path

    found = verify_path(path)
    _print(dataclasses.asdict(found) if as_json else found.reason)
    return 0 if found.ok else 1


def _summary(path: Path, as_json: bool) -> int:
    from esper.recorder.log import Log

    log = Log(path)
    kinds = log.counts()
    agents = sorted({event.agent for event in log} - {""})
    ticks = [event.tick for event in log]
    data: dict[str, Any] = {
        "run": log.run,
        "events": len(log),
        "sealed": log.verification.sealed,
        "ticks": [min(ticks), max(ticks)] if ticks else [],
        "agents": agents,
        "kinds": dict(sorted(kinds.items())),
        "state": log.verification.reason,
    }
    if as_json:
        _print(data)
        return 0
    lines = [log.verification.reason, f"run {log.run}"]
    if ticks:
        lines.append(f"ticks {min(ticks)} to {max(ticks)}; agents: {', '.join(agents) or 'none'}")
    wide = max(map(len, kinds), default=0)
    lines += [f"  {kind:<{wide}}  {count}" for kind, count in sorted(kinds.items())]
    decided = [e for e in log if e.kind in ("verdict", "rollback")]
    for event in decided[-10:]:
        said = event.payload
        text = getattr(said, "reason", "")
        what = getattr(said, "code", event.kind)
        lines.append(f"{event.code}  tick {event.tick}  {event.target}  {what}: {text}")
    _print("\n".join(lines))
    return 0


def _sql(path: Path, query: str, as_json: bool) -> int:
    from esper.recorder.log import Log
    from esper.recorder.query import sql

    columns, rows = sql(Log(path), query)
    if as_json:
        _print([dict(zip(columns, row, strict=True)) for row in rows])
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    console.print(table)
    return 0


def _export(path: Path, kind: str, output: Path | None, as_json: bool) -> int:
    from esper.recorder.log import Log
    from esper.recorder.mlflow import export_mlflow
    from esper.recorder.perfetto import export_perfetto
    from esper.recorder.query import export_parquet
    from esper.recorder.tensorboard import export_tensorboard

    if kind not in _FORMATS:
        raise UsageError(f"a log is exported as {_NAMES}, not as {kind!r}")
    if output is None:
        raise UsageError("--export needs -o FILE (a directory for tensorboard and mlflow)")
    exports = (export_parquet, export_perfetto, export_tensorboard, export_mlflow)
    dict(zip(_FORMATS, exports, strict=True))[kind](Log(path), output)
    _print({"wrote": str(output)} if as_json else f"wrote {output}")
    return 0


def _print(value: Any) -> None:
    import json

    text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
    sys.stdout.write(text + "\n")
