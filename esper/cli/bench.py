"""`esper bench`: suites of installed packages, and those of a source checkout.

A package adds a suite by an entry point of the group `esper.suites`: a function that takes what is
to be called with the exit code and returns a command, as those beside this module do.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from esper.errors import UsageError

GROUP = "esper.suites"
_ALIASES = {"e2e": "minilm"}  # end to end: a pretrained model through every backend
_CHECKOUT = "checkout"


class _Suites(TyperGroup):
    """A name that no package serves is a suite of the checkout."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, _CHECKOUT)


def bench_app(done: Callable[[int], None], *, load: bool) -> typer.Typer:
    """The commands below `esper bench`.

    Args:
        done: is called with the exit code.
        load: import the packages that bring suites; not worth it for other commands.
    """
    app = typer.Typer(
        cls=_Suites,
        name="bench",
        help="Run a suite: kernels anywhere; gate, e2e, surgery and others in a source checkout.",
    )

    @app.command(_CHECKOUT, hidden=True)
    def checkout(context: typer.Context) -> None:
        """Run a benchmark suite of a source checkout; results go to benchmarks/results."""
        done(_run(str(context.info_name), installed() if load else []))

    for point in importlib.metadata.entry_points(group=GROUP) if load else ():
        app.command(point.name)(point.load()(done))
    return app


def installed() -> list[str]:
    """Names of the suites that packages bring."""
    return sorted(point.name for point in importlib.metadata.entry_points(group=GROUP))


def _run(suite: str, others: list[str]) -> int:
    root = benchmarks_root()
    known = suites(root)
    name = _ALIASES.get(suite, suite)
    if name not in known:
        from esper.cli.loaders import nearest

        every = [*others, *known]
        hint = nearest(suite, every) or f"; there is {', '.join(every)}"
        raise UsageError(f"there is no benchmark suite {suite!r}{hint}")
    command = [sys.executable, "-m", "benchmarks", name]
    return subprocess.run(command, cwd=root, check=False).returncode


def benchmarks_root() -> Path:
    """The source checkout that this package is installed from. Raises UsageError without one."""
    import esper

    root = Path(esper.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UsageError(
            "the benchmarks come with the source and not with the installed package: run this "
            "from a checkout (pip install -e .)"
        )
    return root


def suites(root: Path) -> list[str]:
    """Names of the suites of a checkout."""
    command = [sys.executable, "-m", "benchmarks", "--list"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
