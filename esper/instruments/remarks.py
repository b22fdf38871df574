"""`--remarks`: what was done, refused or seen, one line each, once it is settled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Self, get_args

from esper.errors import UsageError
from esper.instruments._output import Write, choose, to_stderr
from esper.instruments.base import Instrument
from esper.records import Kind, Record

if TYPE_CHECKING:
    from esper.ir.model import Model

KINDS: tuple[str, ...] = get_args(Kind)


class Remarks(Instrument):
    """Write `Record.line()` of every record that passes the filters.

    Args:
        kinds: kinds of record to show, by default all. Raises UsageError for an unknown one.
        pattern: regular expression searched for in the line. Raises UsageError if malformed.
        write: receives one line per record.
    """

    name: ClassVar[str] = "remarks"

    def __init__(
        self, kinds: Iterable[str] = KINDS, pattern: str = "", *, write: Write = to_stderr
    ) -> None:
        self._kinds = frozenset(choose("kind of remark", kind, KINDS) for kind in kinds)
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            message = f"remarks filter {pattern!r} is no regular expression: {error}"
            raise UsageError(message) from error
        self._write = write

    @classmethod
    def from_text(cls, text: str, *, write: Write = to_stderr) -> Self:
        """Read `KIND[|KIND...][,REGEX]` or `,REGEX`; empty text shows everything."""
        kinds, _, pattern = text.partition(",")
        return cls(kinds.split("|") if kinds else KINDS, pattern, write=write)

    def settled(self, model: Model, record: Record) -> None:
        if record.kind in self._kinds:
            line = record.line()
            if self._pattern.search(line):
                self._write(line)
