"""`--dump-dir`: the graph after each pass, in numbered files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from esper.errors import OutputError
from esper.instruments._output import label
from esper.instruments.base import Instrument

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.records import Record

_INPUT = "input.txt"
_DUMP = re.compile(r"\d{3,}_[a-z0-9-]+\.txt|input\.txt")


class Dump(Instrument):
    """Write `input.txt`, then `000_PASS.txt`, `001_PASS.txt`, ... after each pass.

    Two neighbours differ by what one pass did, so a plain diff shows it.

    Args:
        directory: made if absent. Raises OutputError if it cannot be written, or holds the dumps
            of an earlier run, with which these would mix.
    """

    name: ClassVar[str] = "dump"

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._number = 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            old = sorted(p.name for p in self.directory.iterdir() if _DUMP.fullmatch(p.name))
        except OSError as error:
            raise OutputError(f"cannot make the dump directory: {error}") from error
        if old:
            message = f"{self.directory} holds dumps of an earlier run ({old[0]})"
            raise OutputError(f"{message}: remove them or give another directory")

    def enter(self, model: Model, pipeline: str) -> None:
        self._save(_INPUT, f"; input of: {pipeline}", model)

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        self._save(f"{self._number:03d}_{pass_.name}.txt", f"; after {label(pass_)}", model)
        self._number += 1

    def _save(self, name: str, head: str, model: Model) -> None:
        try:
            (self.directory / name).write_text(f"{head}\n{model}\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write a dump: {error}") from error
