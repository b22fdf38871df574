"""`esper-opt`: makes a model faster and keeps a change only when it measurably pays."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from esper import __version__
from esper.cli import shell
from esper.cli.options import Options, parse
from esper.errors import UsageError

if TYPE_CHECKING:
    from esper.cli.session import Session

NAME = "esper-opt"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    0 done, 2 usage, 3 input cannot be read, 4 model cannot be traced, 5 verification failed, 6
    target not reached under `--strict`, 130 interrupted. Results go to standard output, reports
    and errors to standard error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = any(word in ("-v", "--verbose") for word in words)

    def failed(message: str, code: int) -> None:
        if "--json" in words:
            import json

            sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")

    with shell.signals(), warnings.catch_warnings() if not verbose else nullcontext():
        if not verbose:
            warnings.simplefilter("ignore")  # libraries warn of what users cannot change
        return shell.run(NAME, lambda: _main(words), verbose=verbose, failed=failed)


def _main(words: list[str]) -> int:
    options = parse(words)
    if options is None:
        return 0
    if _informs(options):
        return 0
    if options.run_reproducer is not None:
        return _reproduce(options)
    if options.input is None:
        raise UsageError(f"which model? give INPUT, or see {NAME} --help")
    return _optimise(options, shlex.join([NAME, *words]))


def _optimise(options: Options, command: str) -> int:
    from esper.cli import render
    from esper.cli.session import Session

    session = Session.prepare(options, command)
    result = session.run()
    session.write_records(result)
    session.write_report(result, command)
    session.notes += result.baseline.notes
    session.notes += session.write(result)
    session.notes += session.about_backend(result)
    written = None if options.output is None else str(options.output)
    _look(session)
    if options.json:
        text = render.as_json(
            result,
            input=options.input,
            output=written,
            report=options.report,
            notes=session.notes,
            timing=session.timing.seconds() if options.time_passes else None,
            stats=session.stats.data() if options.stats else None,
            exit_code=0,
        )
        sys.stdout.write(text + "\n")
    elif not options.quiet:
        render.show(result, session.notes, written, everything=options.verbose)
    sys.stdout.flush()
    return 0


def _look(session: Session) -> None:
    options = session.options
    if options.time_passes and not options.json:
        sys.stderr.write(session.timing.text() + "\n")
    if options.stats and not options.json:
        sys.stderr.write(session.stats.text() + "\n")


def _reproduce(options: Options) -> int:
    from esper.cli.reproducer import run_again

    if options.input is not None:
        raise UsageError("--run-reproducer brings its own model: leave out INPUT")
    assert options.run_reproducer is not None
    record = run_again(options.run_reproducer)
    sys.stdout.write((record.model_dump_json() if options.json else record.line()) + "\n")
    for problem in record.figures.get("problems", ()):
        sys.stderr.write(f"{problem}\n")
    return 5 if record.kind == "failure" else 0


def _informs(options: Options) -> bool:
    """Print what was asked about passes, if anything was."""
    import json

    if options.version:
        text = json.dumps({"version": __version__}) if options.json else f"{NAME} {__version__}"
        sys.stdout.write(text + "\n")
        return True

    from esper.cli.loaders import nearest
    from esper.passbase import passes

    if options.list_passes:
        table = passes()
        if options.json:
            text = json.dumps({name: cls.summary() for name, cls in table.items()})
        else:
            width = max(len(name) for name in table)
            text = "\n".join(f"{name.ljust(width)}  {cls.summary()}" for name, cls in table.items())
        sys.stdout.write(text + "\n")
        return True
    if options.describe is not None:
        from esper.pipeline import describe

        cls = passes().get(options.describe)
        if cls is None:
            hint = nearest(options.describe, list(passes())) or "; see --list-passes"
            raise UsageError(f"there is no pass {options.describe!r}{hint}")
        sys.stdout.write(describe(cls) + "\n")
        return True
    if options.schema:
        from esper import propose, records

        found = {"proposal": propose.schema(), "record": records.schema()}
        sys.stdout.write(json.dumps(found, indent=None if options.json else 2) + "\n")
        return True
    if options.print_pipeline:
        from esper.cli.session import choose_pipeline

        sys.stdout.write(choose_pipeline(options).text() + "\n")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
