"""`esper replay`: a flight record held against the code and the machine of today."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.errors import UsageError

_LEVELS = ("decision", "pass", "full")


def replay_command(done: Callable[[int], None]) -> Callable[..., None]:
    """The command `esper replay`."""

    def replay(
        path: Annotated[Path, typer.Argument(metavar="LOG", help="A flight record, .esperlog.")],
        level: Annotated[
            str,
            typer.Option(
                metavar="LEVEL",
                help="decision: policies decide again; pass: proposals are submitted again; "
                "full: the program runs again.",
            ),
        ] = "full",
        program: Annotated[
            str | None,
            typer.Option(metavar="FILE.py:FN", help="The program, if not that of the log."),
        ] = None,
        start: Annotated[
            str | None, typer.Option("--from", metavar="CODE", help="Start at this keyframe.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print tracebacks.")] = False,
    ) -> None:
        """Run a record again and name the first event that comes out otherwise; exit 1 then."""
        done(_replay(path, level, program, start, as_json=as_json))

    return replay


def _replay(
    path: Path, level: str, program: str | None, start: str | None, *, as_json: bool
) -> int:
    if level not in _LEVELS:
        raise UsageError(f"the levels are {', '.join(_LEVELS)}; there is no {level!r}")
    if level == "decision" and (program is not None or start is not None):
        raise UsageError("--program and --from belong to the levels pass and full")
    from esper import replay
    from esper.cli.loaders import load_function
    from esper.recorder.log import Log

    log = Log(path)
    if level == "decision":
        found = replay.decision(log)
    else:
        function: Any = None if program is None else load_function(program, "--program")
        run = replay.passes if level == "pass" else replay.full
        found = run(log, program=function, start_at=start)
    text = json.dumps({"log": str(path), "run": log.run, **found.as_data()}, indent=2)
    sys.stdout.write((text if as_json else found.text(log)) + "\n")
    return 0 if found.equal else 1
