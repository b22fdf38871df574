"""`esper demo`: the storyboards of live surgery."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from esper.demo.stages import Setting
from esper.errors import OutputError, UsageError


def demo_command(done: Callable[[int], None]) -> Callable[..., None]:
    """The command `esper demo`."""

    def demo(
        stage: Annotated[str, typer.Argument(metavar="STAGE", help="stage0 to stage3.")],
        short: Annotated[bool, typer.Option("--short", help="In a minute or two.")] = False,
        seeds: Annotated[
            int, typer.Option(metavar="N", min=0, help="Paired seeds; by default the stage's own.")
        ] = 0,
        first: Annotated[
            int, typer.Option("--first-seed", metavar="N", min=0, help="Of the paired seeds.")
        ] = 0,
        steps: Annotated[
            int, typer.Option(metavar="N", min=0, help="Steps of a run; by default its own.")
        ] = 0,
        data: Annotated[
            str, typer.Option(metavar="DIR", help="IDX files of Fashion-MNIST instead of digits.")
        ] = "",
        output: Annotated[
            Path | None,
            typer.Option("-o", "--output", metavar="DIR", help="For the log and the report."),
        ] = None,
        progress: Annotated[str, typer.Option(metavar="MODE", help="auto or never.")] = "auto",
        verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print tracebacks.")] = False,
    ) -> None:
        """Show what live surgery does: explain, grow, remove, regrow; on real data, in minutes."""
        if progress not in ("auto", "never"):
            raise UsageError(f"--progress is auto or never, not {progress!r}")
        folder = output or Path(f"esper-{stage}")
        done(_run(stage, Setting(folder, short, seeds, steps, data, first), progress))

    return demo


def _run(stage: str, setting: Setting, mode: str) -> int:
    from esper.cli import outputs
    from esper.cli.loaders import nearest
    from esper.demo.stages import NAMES, stages
    from esper.instruments import Progress
    from esper.report.storyboard import render

    if stage not in NAMES:
        hint = nearest(stage, list(NAMES)) or f"; there is {', '.join(NAMES)}"
        raise UsageError(f"there is no storyboard {stage!r}{hint}")
    try:
        setting.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{setting.folder} cannot be made: {error.strerror or error}") from error
    page_file = setting.folder / f"{stage}.html"
    outputs.check_writable(page_file)
    bar = Progress("auto" if mode == "auto" else "never")
    with bar.task(f"running {stage}"):
        page = stages()[stage](replace(setting, progress=bar.report))
    outputs.write_text(str(page_file), render(page, _environment()))
    sys.stdout.write(page.text() + f"\nreport: {page_file}\n")
    return 0


def _environment() -> dict[str, str]:
    from esper.recorder.fingerprint import fingerprint

    return {name: str(value) for name, value in fingerprint().items()}
