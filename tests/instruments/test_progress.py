"""Progress: drawn on a terminal after the delay, nowhere else, and gone at the end."""

from __future__ import annotations

import io
import threading
from typing import Literal

import pytest

from esper.instruments import Progress, Stack
from tests.instruments.support import Shrink, model


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and signals when words arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, threading.Event] = {}

    def expect(self, word: str) -> threading.Event:
        return self.waiting.setdefault(word, threading.Event())

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        for word, event in self.waiting.items():
            if word in self.getvalue():
                event.set()
        return count


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that tell rich to draw otherwise would make this test depend on its caller."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def test_shows_where_it_is_after_the_delay() -> None:
    terminal = Terminal()
    progress = Progress(delay=0.0, stream=terminal)
    stack, m = Stack([progress]), model()
    with stack.run(m, "shrink"):
        stack.before_pass(m, Shrink())
        with stack.phase("propose"):
            assert terminal.expect("shrink > propose").wait(30)
            progress.report(3, 10, "scoring axes")
            assert terminal.expect("shrink > propose > scoring axes").wait(30)
            assert progress.visible
        stack.after_pass(m, Shrink(), [])
    assert not progress.visible


def test_leaves_the_terminal_clean_after_an_error() -> None:
    terminal = Terminal()
    progress = Progress(delay=0.0, stream=terminal)

    def fail() -> None:
        assert terminal.expect("tracing").wait(30)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), progress.task("tracing"):
        fail()
    assert not progress.visible
    hidden, shown = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown, "the cursor is shown again"


def test_short_work_draws_nothing() -> None:
    terminal = Terminal()
    progress = Progress(delay=3600.0, stream=terminal)
    with progress.task("outer"), progress.task("inner"):
        progress.report(1, 2, "steps")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("mode", "stream"), [("never", Terminal()), ("auto", io.StringIO())], ids=["never", "no tty"]
)
def test_draws_nothing_where_not_wanted(
    mode: Literal["auto", "never"], stream: io.StringIO
) -> None:
    progress = Progress(mode, delay=0.0, stream=stream)
    threads = threading.active_count()
    with progress.task("work"):
        progress.report(1, 2, "steps")
        assert threading.active_count() == threads
    assert stream.getvalue() == ""
