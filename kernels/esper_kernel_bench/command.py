"""`esper bench kernels`. Nothing heavy is imported before it is used, so help is quick."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.errors import OutputError, UsageError

if TYPE_CHECKING:
    from esper_kernel_bench.suite import Selection

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
QUICK_ROWS = (1, 16, 256)
_SELECT = "What is measured"
_RESULT = "Results"


def _option(*names: str, panel: str, help: str, metavar: str = " ") -> Any:  # noqa: A002
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )


def kernels_command(done: Callable[[int], None]) -> Callable[..., None]:
    """The command `esper bench kernels`."""

    def kernels(
        shapes: Annotated[
            str,
            _option(
                "--shapes",
                panel=_SELECT,
                metavar="GLOB,...",
                help="Model or model/layer: llama-3-8b, qwen2.5-7b, bert-base, vit-b16, mixer-b16.",
            ),
        ] = "",
        m: Annotated[
            str, _option("--m", panel=_SELECT, metavar="N,...", help="Rows of the input.")
        ] = "",
        patterns: Annotated[
            str,
            _option(
                "--patterns",
                panel=_SELECT,
                metavar="GLOB,...",
                help="dense, int8, 2:4, V:N:MxRUN, RxC@DENSITY, low-rank@SHARE, PATTERN+int8.",
            ),
        ] = "",
        dtypes: Annotated[
            str, _option("--dtypes", panel=_SELECT, metavar="NAME,...", help="fp32, fp16, bf16.")
        ] = "",
        device: Annotated[
            str, _option("--device", panel=_SELECT, metavar="NAME", help="cpu, cuda or auto.")
        ] = "auto",
        threads: Annotated[
            int,
            _option("--threads", panel=_SELECT, metavar="N", help="Threads of a CPU; 0: as is."),
        ] = 0,
        quick: Annotated[
            bool, _option("--quick", panel=_SELECT, help="Few layers, patterns, rows and rounds.")
        ] = False,
        max_autotune: Annotated[
            bool,
            _option("--max-autotune", panel=_SELECT, help="Inductor searches templates: slow."),
        ] = False,
        budget_seconds: Annotated[
            float,
            _option(
                "--budget-seconds",
                panel=_SELECT,
                metavar="N",
                help="Begin nothing that would take longer than this in all.",
            ),
        ] = float("inf"),
        seed: Annotated[
            int, _option("--seed", panel=_SELECT, metavar="N", help="Of data and of orders.")
        ] = 0,
        output: Annotated[
            Path | None,
            _option("-o", "--output", panel=_RESULT, metavar="FILE.json", help="Write."),
        ] = None,
        as_json: Annotated[
            bool, _option("--json", panel=_RESULT, help="Print one JSON object, no tables.")
        ] = False,
        plot: Annotated[
            Path | None,
            _option("--plot", panel=_RESULT, metavar="DIR", help="Draw heat maps and rooflines."),
        ] = None,
        show: Annotated[
            Path | None,
            _option("--show", panel=_RESULT, metavar="FILE.json", help="Measure nothing, show it."),
        ] = None,
        compare: Annotated[
            tuple[Path, Path] | None,
            _option(
                "--compare",
                panel=_RESULT,
                metavar="A.json B.json",
                help="Measure nothing, say what is faster in B.",
            ),
        ] = None,
        progress: Annotated[
            str, _option("--progress", panel=_RESULT, metavar="MODE", help="auto or never.")
        ] = "auto",
        verbose: Annotated[
            bool, _option("-v", "--verbose", panel=_RESULT, help="Print tracebacks.")
        ] = False,
    ) -> None:
        """Time our kernels beside the fastest there is without them, on layers of real models."""
        if progress not in ("auto", "never"):
            raise UsageError(f"--progress is auto or never, not {progress!r}")
        if compare is not None:
            if show is not None or output is not None or plot is not None:
                raise UsageError("--compare goes with none of --show, --output and --plot")
            done(_compare(*compare, as_json=as_json))
            return
        _check(output, plot)
        if show is not None:
            from esper_kernel_bench.document import read

            found = read(show)
        else:
            selection = select(
                shapes=shapes, m=m, patterns=patterns, dtypes=dtypes, device=device, quick=quick,
                tuned=max_autotune, budget=budget_seconds, seed=seed,
            )  # fmt: skip
            command = _command(
                shapes=shapes, m=m, patterns=patterns, dtypes=dtypes, device=selection.device,
                threads=threads, quick=quick, max_autotune=max_autotune, seed=seed,
            )  # fmt: skip
            found = _measure(selection, threads, command, "never" if as_json else progress)
        done(_give(found, output, plot, as_json=as_json))

    return kernels


def select(
    *,
    shapes: str = "",
    m: str = "",
    patterns: str = "",
    dtypes: str = "",
    device: str = "auto",
    quick: bool = False,
    tuned: bool = False,
    budget: float = float("inf"),
    seed: int = 0,
) -> Selection:
    """The options as a selection. Raises UsageError for words that mean nothing."""
    import torch

    from esper_kernel_bench import compression, layers
    from esper_kernel_bench.sampling import Effort
    from esper_kernel_bench.suite import Selection

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is cpu, cuda or auto, not {device!r}")
    if not budget > 0:
        raise UsageError(f"--budget-seconds is a positive number, not {budget}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    some = layers.QUICK if quick else ("*",)
    usual = "bf16" if device == "cuda" else "fp32,bf16"
    return Selection(
        layers=layers.choose(_words(shapes, "--shapes") or some),
        rows=_rows(m) or (QUICK_ROWS if quick else ROWS),
        compressions=compression.choose(
            _words(patterns, "--patterns") or (compression.QUICK if quick else ("*",))
        ),
        dtypes=_dtypes(dtypes or usual),
        device=device,
        effort=Effort(placements=3, seconds=0.4, least=3, most=8) if quick else Effort(),
        budget=budget,
        seed=seed,
        tuned=tuned,
    )


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")] if text else []
    if "" in words:
        raise UsageError(f"{option}: there is nothing between two commas of {text!r}")
    return words


def _rows(text: str) -> list[int]:
    words = _words(text, "--m")
    wrong = [word for word in words if not word.isdecimal() or not 0 < int(word) <= 2**20]
    if wrong:
        raise UsageError(f"--m: {wrong[0]!r} is no number of rows from 1 to {2**20}")
    return sorted({int(word) for word in words})


def _dtypes(text: str) -> list[str]:
    from esper_kernel_bench.suite import DTYPES

    words = list(dict.fromkeys(_words(text, "--dtypes")))
    for word in words:
        if word not in DTYPES:
            raise UsageError(f"--dtypes: {word!r} is none of {', '.join(DTYPES)}")
    return words


def _check(output: Path | None, plot: Path | None) -> None:
    """Say now and not after an hour that a result cannot be written."""
    from esper.cli.outputs import check_writable

    if output is not None:
        check_writable(output)
    if plot is not None:
        try:
            plot.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{plot} cannot be made: {error.strerror or error}") from error


def _measure(selection: Selection, threads: int, command: str, progress: str) -> dict[str, Any]:
    import torch

    from esper.instruments import Progress
    from esper_kernel_bench.document import document
    from esper_kernel_bench.suite import run

    before = torch.get_num_threads()
    if threads < 0:
        raise UsageError(f"--threads is a number of threads, not {threads}")
    torch.set_num_threads(threads or before)
    bar = Progress("auto" if progress == "auto" else "never")
    try:
        with bar.task("measuring kernels"):
            findings = run(selection, bar.report)
        return document(selection, findings, command)
    finally:
        torch.set_num_threads(before)


def _command(**options: object) -> str:
    """The command that measures the same again."""
    words = ["esper", "bench", "kernels"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _give(found: dict[str, Any], output: Path | None, plot: Path | None, *, as_json: bool) -> int:
    from esper.cli.outputs import write_text
    from esper_kernel_bench.document import dumps
    from esper_kernel_bench.pictures import pictures
    from esper_kernel_bench.printing import show

    if output is not None:
        write_text(str(output), dumps(found))
    if plot is not None:
        for name, picture in pictures(found).items():
            write_text(str(plot / name), picture)
    if as_json:
        sys.stdout.write(dumps(found))
    else:
        show(found)
    return 0


def _compare(before: Path, after: Path, *, as_json: bool) -> int:
    import json

    from esper_kernel_bench.comparison import compare
    from esper_kernel_bench.document import read
    from esper_kernel_bench.printing import show_comparison

    found = compare(read(before), read(after))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        show_comparison(found)
    return 0
