"""`--print-ir-before` and `--print-ir-after`: the graph as text around passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, ClassVar

from esper.instruments._output import Write, choose, label, to_stderr
from esper.instruments.base import Instrument

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.records import Record


class Printing(Instrument):
    """Print the model before or after passes.

    Args:
        before: a pass name, `all`, or `change` (before those passes that changed the model, which
            is known, and printed, once they have ended); None prints nothing.
        after: the same after passes.
        known: names of passes. Raises UsageError for a name that is not among them.
        write: receives each block of text.
    """

    name: ClassVar[str] = "printing"

    def __init__(
        self,
        before: str | None = None,
        after: str | None = None,
        *,
        known: Collection[str],
        write: Write = to_stderr,
    ) -> None:
        choices = ["all", "change", *known]
        self._before = None if before is None else choose("pass", before, choices)
        self._after = None if after is None else choose("pass", after, choices)
        self._write = write
        self._texts: list[str] = []
        self._number = -1

    def before_pass(self, model: Model, pass_: Pass) -> None:
        self._number += 1
        compare = "change" in (self._before, self._after)
        wanted = self._before in ("all", pass_.name)
        text = str(model) if compare or wanted else ""
        self._texts.append(text)
        if wanted:
            self._block("before", pass_, text)

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        old = self._texts.pop()
        compare = "change" in (self._before, self._after)
        wanted = self._after in ("all", pass_.name)
        if not (compare or wanted):
            return
        text = str(model)
        changed = compare and text != old
        if changed and self._before == "change":
            self._block("before", pass_, old)
        if wanted or (changed and self._after == "change"):
            self._block("after", pass_, text)

    def exit(self, model: Model) -> None:
        self._texts.clear()

    def _block(self, when: str, pass_: Pass, text: str) -> None:
        self._write(f"; IR {when} pass {self._number}: {label(pass_)}\n{text}")
