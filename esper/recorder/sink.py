"""The file that a recorder appends to: made atomically, locked, never left with half a frame."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

from esper.errors import InputError, OutputError, UsageError

if sys.platform != "win32":
    import fcntl

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends otherwise


class Sink:
    """An append-only file descriptor with an exclusive lock.

    A process that forks keeps it: the child's copy of the descriptor is closed at once, so that
    the lock ends with the process that took it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        _open.add(self)

    @classmethod
    def create(cls, path: Path, start: bytes) -> Sink:
        """A new file with these first bytes: it appears whole and locked, or not at all.

        Raises:
            UsageError: the file exists.
            OutputError: it cannot be written.
        """
        temporary = f"{path}.{secrets.token_hex(6)}.tmp"
        with _as_output_error(path):
            descriptor = os.open(temporary, os.O_RDWR | _BINARY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _lock(descriptor, path)
                _write(descriptor, start)
                os.fsync(descriptor)
                _link(temporary, path)
                _sync_directory(path)
            except BaseException:
                os.close(descriptor)
                raise
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        return cls(path, descriptor)

    @classmethod
    def open(cls, path: Path) -> Sink:
        """An existing file, to be continued.

        Raises:
            InputError: there is none.
            UsageError: another process, or another recorder of this one, is writing it.
            OutputError: it cannot be opened for writing.
        """
        if not path.is_file():
            raise InputError(f"there is no log {path} to resume")
        with _as_output_error(path):
            descriptor = os.open(path, os.O_RDWR | _BINARY)
            try:
                _lock(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(path, descriptor)

    def write(self, data: bytes, at: int) -> None:
        """Hand bytes to the operating system, to stand at offset `at`.

        They survive the death of the process at once, and that of the machine after `sync`.
        Raises OutputError, and then some of them may have been written.
        """
        try:
            os.lseek(self._descriptor, at, os.SEEK_SET)
            _write(self._descriptor, data)
        except OSError as error:
            raise _output_error(self.path, error) from error

    def truncate(self, end: int) -> None:
        """Cut the file off after `end` bytes. Raises OutputError."""
        with _as_output_error(self.path):
            os.ftruncate(self._descriptor, end)

    def sync(self) -> None:
        """Return when everything appended is on disk. Raises OutputError."""
        with _as_output_error(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptor, which releases the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):  # the next call says what is wrong
        written += os.write(descriptor, data[written:])


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{path} is being written by another recorder: one log has one writer"
        ) from error


def _link(temporary: str, path: Path) -> None:
    """Give the file its name unless that is taken."""
    taken = UsageError(f"{path} exists: resume it, or give another path")
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise taken from error
    except OSError as error:
        # File systems without hard links: the check and the renaming are two steps then.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if path.exists():
            raise taken from error
        os.rename(temporary, path)


def _sync_directory(path: Path) -> None:
    # Where directories cannot be opened, the name is as durable as it gets.
    with contextlib.suppress(OSError):
        descriptor = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror or error}")


def _close_in_child() -> None:
    for sink in list(_open):
        sink.close()


_open: weakref.WeakSet[Sink] = weakref.WeakSet()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)
