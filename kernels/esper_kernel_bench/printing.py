"""Tables of a result and of a comparison, as people read them in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_STYLES = {"FAST": "green", "SLOW": "red", "SAME": "", "AMBIGUOUS": "yellow"}
_WIDE = 200  # characters where the output is no terminal


def show(document: Mapping[str, Any]) -> None:
    """Every cell, who takes no part and why, and the notes."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("layer", "M", "dtype", "op", "pattern"):
        table.add_column(name, no_wrap=True)
    for name in ("µs", "over dense", "over best", "", "limit: spec", "measured"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("best peer", no_wrap=True)
    for cell in document["cells"]:
        table.add_row(
            *(Text(str(cell[key])) for key in ("layer", "m", "dtype", "op", "compression")),
            f"{cell['microseconds']:,.1f}",
            f"{cell['dense_ratio']:.2f}",
            f"{cell['best_ratio']:.2f}",
            Text(f"[{cell['best_lower']:.2f}, {cell['best_upper']:.2f}]"),
            *(_share(cell[f"fraction_{which}"]) for which in ("specification", "calibrated")),
            Text(cell["best_outcome"], style=_STYLES[cell["best_outcome"]]),
            Text(cell["peer"]),
        )
    console.print(table)
    absent = _absent(document["panels"])
    if absent:
        console.print("\nno part in some panels:")
        for line in absent:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    for line in document["skipped"]:
        console.print(f"not measured: {line}", markup=False)
    console.print()
    for note in document["notes"]:
        console.print(note, markup=False)


def _absent(panels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Contender and reason, with the number of panels."""
    counts: dict[tuple[str, str], int] = {}
    for panel in panels:
        for key, reason in panel["absent"].items():
            counts[key, reason] = counts.get((key, reason), 0) + 1
    return [f"{key}: {reason} ({count})" for (key, reason), count in counts.items()]


def show_comparison(found: Mapping[str, Any]) -> None:
    """What changed from the first result to the second."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("layer", "M", "dtype", "contender"):
        table.add_column(name, no_wrap=True)
    for name in ("before µs", "after µs", "times faster", ""):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for row in found["rows"]:
        table.add_row(
            *(Text(str(row[key])) for key in ("layer", "m", "dtype", "contender")),
            f"{row['before']:,.1f}",
            f"{row['after']:,.1f}",
            f"{row['ratio']:.3f}",
            Text(f"[{row['lower']:.3f}, {row['upper']:.3f}]"),
            Text(row["outcome"], style=_STYLES[row["outcome"]]),
        )
    console.print(table)
    console.print()
    for note in found["notes"]:
        console.print(note, markup=False)


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, file=sys.stdout)
    if not console.is_terminal:
        console = Console(highlight=False, file=sys.stdout, width=max(console.width, _WIDE))
    return console


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
