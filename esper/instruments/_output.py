"""Where instruments write, and how they name things."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Sequence

from esper.errors import UsageError
from esper.passbase import Pass
from esper.pipeline import Item

Write = Callable[[str], None]


def to_stderr(text: str) -> None:
    """Write one line (or block) to standard error, as reports are."""
    sys.stderr.write(text + "\n")


def label(pass_: Pass | None) -> str:
    """A pass with its options as in a pipeline; `user` without a pass."""
    if pass_ is None:
        return "user"
    return pass_.name if pass_.nests else Item(pass_).text()


def choose(what: str, name: str, known: Collection[str]) -> str:
    """`name` if it is known. Raises UsageError with the nearest known name."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
    raise UsageError(f"unknown {what} {name!r}; {hint}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first to the left, figures to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
