"""Atomic file writing: a file is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from esper.errors import OutputError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file through a temporary one beside it, then rename.

    The data reach the disk before the name does (fsync of the file, rename, fsync of the
    directory), so a reader or a crash sees the old file or the new one. When the body raises, or
    is interrupted, the temporary file goes and the old one stays. Symbolic links are followed;
    devices and pipes, which cannot be renamed over, are written directly.

    Raises:
        OutputError: the file cannot be written (no such directory, no permission, disk full).
    """
    target = os.path.realpath(path)
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            with open(target, "wb") as stream:
                yield stream
            return
        temporary = f"{target}.{secrets.token_hex(6)}.tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(os.path.dirname(target))
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{Path(path)} cannot be written: {reason}") from error


def _mode(target: str) -> int | None:
    try:
        return os.stat(target).st_mode
    except FileNotFoundError:
        return None


def _sync_directory(directory: str) -> None:
    # Where directories cannot be opened (Windows), the rename is as durable as it gets.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
