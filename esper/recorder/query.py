"""SQL over a log, and its tables as Parquet, through DuckDB."""

from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.errors import OutputError, UsageError
from esper.recorder import canonical
from esper.recorder.kinds import KINDS

if TYPE_CHECKING:
    import duckdb

    from esper.recorder.log import Log

_COLUMNS = (
    "number BIGINT, code VARCHAR, run VARCHAR, tick BIGINT, cause BIGINT, kind VARCHAR, "
    "agent VARCHAR, target VARCHAR, schema BIGINT, time BIGINT, payload JSON"
)


def connect(log: Log) -> duckdb.DuckDBPyConnection:
    """A database in memory with the table `events` and a view for each kind.

    A view is named as its kind with _ for -; the payload's fields are columns, nested ones JSON.

    Raises:
        UsageError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UsageError("SQL and Parquet need DuckDB: pip install 'esper-opt[log]'") from error
    connection = duckdb.connect(":memory:")
    connection.execute(f"CREATE TABLE events ({_COLUMNS})")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.json"
        with path.open("w", encoding="utf-8") as stream:
            for event in log:
                stream.write(json.dumps(canonical.spelled(event.as_data())) + "\n")
        if len(log):
            names = [column.split()[0] for column in _COLUMNS.split(", ")]
            types = {c.split()[0]: c.split()[1] for c in _COLUMNS.split(", ")}
            connection.execute(
                f"INSERT INTO events SELECT {', '.join(names)} FROM read_json(?, "
                f"format='newline_delimited', columns={json.dumps(types)})".replace('"', "'"),
                [str(path)],
            )
    for kind, cls in KINDS.items():
        columns = "".join(f", {_column(str(field.type), field.name)}" for field in fields(cls))
        connection.execute(
            f"CREATE VIEW {kind.replace('-', '_')} AS SELECT number, code, tick, cause, agent, "
            f"target{columns} FROM events WHERE kind = '{kind}'"
        )
    return connection


def _column(annotation: str, name: str) -> str:
    """A payload's field as a column: plain types as themselves, the rest as JSON."""
    first = annotation.partition(" ")[0]
    kind = {"float": "DOUBLE", "int": "BIGINT", "bool": "BOOLEAN", "str": "VARCHAR"}.get(first)
    path = f"payload->'$.{name}'" if kind is None else f"CAST(payload->>'$.{name}' AS {kind})"
    return f'{path} AS "{name}"'


def sql(log: Log, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and rows of a query. Raises UsageError with DuckDB's first line."""
    connection = connect(log)
    import duckdb  # it is there, or the connection had not been made

    if not query.strip():
        raise UsageError("this query is empty: ask for example SELECT kind, count(*) FROM events")
    try:
        found = connection.execute(query)
        columns = [column[0] for column in found.description or ()]
        return columns, found.fetchall()
    except duckdb.Error as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"this query cannot be run: {first}") from error


def export_parquet(log: Log, path: Path) -> None:
    """Write the table `events` as one Parquet file. Raises OutputError."""
    connection = connect(log)
    import duckdb  # it is there, or the connection had not been made

    temporary = path.with_name(path.name + ".tmp")
    try:
        connection.execute(f"COPY events TO '{_quoted(temporary)}' (FORMAT PARQUET)")
        temporary.replace(path)
    except (duckdb.Error, OSError) as error:
        temporary.unlink(missing_ok=True)
        first = str(error).strip().splitlines()[0]
        raise OutputError(f"{path} cannot be written: {first}") from error


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
