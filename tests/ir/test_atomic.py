"""Atomic writing: all or nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from esper.errors import OutputError
from esper.ir.atomic import atomic_write


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data in (b"one", b"two"):
        with atomic_write(path) as stream:
            stream.write(data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "f"

    def fail() -> None:
        with atomic_write(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="f cannot be written: No space left on device"):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["none/f", "."])
def test_a_place_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"), atomic_write(tmp_path / name):
        pytest.fail("the body must not run")


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    with atomic_write(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_devices_are_written_directly() -> None:
    with atomic_write(os.devnull) as stream:
        stream.write(b"gone")
    assert not stat.S_ISREG(os.stat(os.devnull).st_mode)
