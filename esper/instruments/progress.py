"""`--progress`: a line on standard error that says what takes so long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TextIO

from esper.instruments.base import Instrument, Phase

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from esper.ir.model import Model
    from esper.passbase import Pass
    from esper.records import Record


class Progress(Instrument):
    """Shows what is running once it has taken longer than a delay.

    `report` is made to be given to passes as `Context.progress`; `task` serves whatever runs
    outside a pipeline, such as tracing. Nothing is shown where the stream is not a terminal.

    Args:
        mode: `auto`, or `never` to show nothing.
        delay: seconds before anything appears.
        stream: where to draw, by default standard error.
    """

    name: ClassVar[str] = "progress"

    def __init__(
        self,
        mode: Literal["auto", "never"] = "auto",
        *,
        delay: float = 2.0,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = mode == "auto" and self._stream.isatty()
        self._delay = delay
        self._lock = threading.Lock()
        self._depth = 0
        self._timer: threading.Timer | None = None
        self._bar: Bar | None = None
        self._task: Any = None
        self._where: list[str] = []
        self._done: tuple[int, int, str] | None = None

    @property
    def visible(self) -> bool:
        """Whether something is drawn now."""
        return self._bar is not None

    @contextmanager
    def task(self, what: str) -> Iterator[None]:
        """Name work that takes a while. Tasks nest."""
        self._open(what)
        try:
            yield
        finally:
            self._close()

    def report(self, done: int, total: int, what: str) -> None:
        """Say that `done` of `total` steps of something are finished."""
        with self._lock:
            self._done = (done, total, what)
            self._draw()

    def enter(self, model: Model, pipeline: str) -> None:
        self._open("")

    def exit(self, model: Model) -> None:
        self._close()

    def before_pass(self, model: Model, pass_: Pass) -> None:
        self._open(pass_.name)

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        self._close()

    def enter_phase(self, phase: Phase) -> None:
        self._open(phase)

    def exit_phase(self, phase: Phase) -> None:
        self._close()

    def _open(self, what: str) -> None:
        if not self._enabled:
            return
        with self._lock:
            self._where.append(what)
            self._done = None
            if self._timer is None:
                self._timer = threading.Timer(self._delay, self._show)
                self._timer.daemon = True
                self._timer.start()
            self._draw()

    def _close(self) -> None:
        if not self._enabled:
            return
        with self._lock:
            self._where.pop()
            self._done = None
            self._draw()
            if self._where:
                return
            if self._timer is not None:
                self._timer.cancel()
            bar, self._timer, self._bar = self._bar, None, None
        if bar is not None:
            bar.stop()

    def _show(self) -> None:
        """Runs in the timer's thread."""
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        with self._lock:
            if not self._where or self._bar is not None:
                return
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
                refresh_per_second=2,  # drawing must not disturb what the gate measures beside it
                redirect_stdout=False,
            )
            self._task = self._bar.add_task("", total=None)
            self._draw()
            self._bar.start()

    def _draw(self) -> None:
        """Bring the line up to date; the lock is held."""
        if self._bar is None:
            return
        done, total, what = self._done or (0, 0, "")
        words = [word for word in (*self._where, what) if word]
        self._bar.update(
            self._task, description=" > ".join(words), completed=done, total=total or None
        )
