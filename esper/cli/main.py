"""`esper`: looks into models and flight records, shows demos, runs a checkout's benchmarks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from esper import __version__
from esper.cli import shell
from esper.cli.bench import bench_app
from esper.cli.demo import demo_command
from esper.cli.flight import log_command, why_command
from esper.cli.options import make_app, run_app
from esper.cli.replay import replay_command
from esper.errors import UsageError

NAME = "esper"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code, as `esper-opt` does."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in ([], ["bench"]):
        words.append("--help")
    verbose = any(word in ("-v", "--verbose") for word in words)

    def failed(message: str, code: int) -> None:
        if "--json" in words:
            import json

            sys.stdout.write(json.dumps({"error": message, "exit_code": code}) + "\n")

    def body() -> int:
        codes: list[int] = []
        done = codes.append
        commands = (log_command, why_command, replay_command, demo_command)
        app = make_app(NAME, _inspect(done), *(make(done) for make in commands))
        app.callback()(_program)
        app.add_typer(bench_app(done, load=words[:1] == ["bench"]))
        if run_app(app, NAME, words):
            return 0
        return codes[0]

    with shell.signals(), warnings.catch_warnings() if not verbose else nullcontext():
        if not verbose:
            warnings.simplefilter("ignore")
        return shell.run(NAME, body, verbose=verbose, failed=failed)


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"{NAME} {__version__}\n")
        raise typer.Exit


def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Look into models and flight records, run demos and benchmarks."""


def _inspect(done: Callable[[int], None]) -> Callable[..., None]:
    def inspect(
        model_input: Annotated[
            str, typer.Argument(metavar="INPUT", help="A model, as esper-opt takes it.")
        ],
        model: Annotated[
            str | None, typer.Option(metavar="FILE.py:FN", help="Factory for a state dict.")
        ] = None,
        allow_pickle: Annotated[
            bool, typer.Option("--allow-pickle", help="Unpickle INPUT: only if you trust it.")
        ] = False,
        inputs: Annotated[
            str | None, typer.Option(metavar="FILE.py:FN|SPEC", help="Example inputs.")
        ] = None,
        dynamic: Annotated[
            str | None, typer.Option(metavar="NAME:DIM,...", help="Further dynamic dimensions.")
        ] = None,
        static: Annotated[bool, typer.Option("--static", help="No dynamic dimension.")] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object instead of a tree.")
        ] = False,
        svg: Annotated[
            str | None, typer.Option(metavar="FILE", help="Draw the anatomy as a picture.")
        ] = None,
        time: Annotated[
            bool, typer.Option("--time", help="Also show where the time goes, node by node.")
        ] = False,
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print tracebacks.")] = False,
    ) -> None:
        """Show the anatomy of a model: regions, axes, sizes, and what is frozen and why."""
        from esper.cli.reading import Source

        source = Source(model_input, model, allow_pickle, inputs, dynamic, static)
        done(_show(source, as_json=as_json, svg=svg, time=time))

    return inspect


def _show(source: Any, *, as_json: bool, svg: str | None, time: bool) -> int:
    from esper.cli import outputs, render, tree
    from esper.cli.reading import read
    from esper.instruments import Progress
    from esper.node_times import node_seconds

    if source.static and source.dynamic:
        raise UsageError("--static and --dynamic exclude one another")
    if svg is not None:
        outputs.check_writable(svg)
    progress = Progress("never" if as_json else "auto")
    subject = read(source, progress)
    model = subject.model
    seconds: dict[str, float] = {}
    if time:
        if subject.inputs is None:
            raise UsageError(f"--time runs {source.input}, which needs example inputs: --inputs")
        with progress.task("timing every node"):
            seconds = node_seconds(model, *subject.inputs.example)
    with progress.task("reading the anatomy"):
        found = tree.as_data(model, seconds)
    if svg is not None:
        from esper.report.anatomy_svg import draw
        from esper.report.facts import from_model

        picture = draw(
            from_model(model),
            title=Path(source.input).name,
            facts=tree.headline(model, seconds),
            shares=tree.shares(model, seconds),
        )
        outputs.write_text(svg, picture)
    if as_json:
        sys.stdout.write(render.dumps({"input": source.input, **found}) + "\n")
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    console.print(tree.as_tree(model, source.input, seconds))
    for note in [*subject.notes, *model.notes]:
        console.print(f"note: {note}", style="dim", markup=False)
    for line in tree.unknown_lines(found["unknown_ops"]):
        console.print(line, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
