"""What every command has in common: errors in one sentence, exit codes, signals, leftovers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from esper.errors import EsperError

INTERRUPTED = 130
INTERNAL = 1


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in the main thread; a second one ends at once."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            end_children()
            os._exit(INTERRUPTED)
        seen.append(number)
        raise Interrupted(signal.Signals(number).name)

    numbers = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


def run(
    name: str, body: Callable[[], int], *, verbose: bool, failed: Callable[[str, int], None]
) -> int:
    """Run a command and turn what it raises into one sentence and an exit code.

    Args:
        name: of the program, for messages.
        body: returns the exit code.
        verbose: print tracebacks too.
        failed: called with message and exit code of an error (for `--json`).
    """
    try:
        return body()
    except KeyboardInterrupt:
        end_children()
        return _say(name, "interrupted: nothing was half-written", INTERRUPTED, failed)
    except EsperError as error:
        if verbose:
            traceback.print_exc()
        return _say(name, str(error), error.exit_code, failed)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return INTERNAL
    except MemoryError:
        return _say(name, "there is not enough memory for this model", INTERNAL, failed)
    except Exception as error:  # noqa: BLE001 - the last resort, reported with its type
        if verbose:
            traceback.print_exc()
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        text = f"internal error, please report it: {type(error).__name__}: {first}".rstrip(": ")
        hint = "" if verbose else " (-v prints the traceback)"
        return _say(name, text + hint, INTERNAL, failed)


def _say(name: str, message: str, code: int, failed: Callable[[str, int], None]) -> int:
    failed(message, code)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{name}: error: {message}\n")
        sys.stderr.flush()
    return code


def end_children() -> None:
    """Kill every process that descends from this one (Linux; elsewhere they notice by themselves).

    Compilers and measured processes must not go on after an interruption.
    """
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Process numbers of all children, grandchildren and so on, from /proc."""
    parents: dict[int, int] = {}
    try:
        entries = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []
    for pid in entries:
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            parents[pid] = int(stat.rpartition(")")[2].split()[1])
    found: list[int] = []
    fringe = [root]
    while fringe:
        fringe = [pid for pid, parent in parents.items() if parent in fringe]
        found += fringe
    return found
