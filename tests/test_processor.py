"""The processor's name, where Linux gives one and where it does not."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from esper.processor import processor


def test_linux_names_the_model(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_bytes(b"processor\t: 0\nmodel name\t: Some \xff CPU: 3\n\nmodel name\t: Other\n")
    assert processor(listed) == "Some � CPU: 3"


def test_generations_of_one_name_are_told_apart(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    core = "processor\t: {}\ncpu family\t: {}\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n"
    listed.write_text(core.format(0, 26) + core.format(1, 25))
    assert processor(listed) == "AMD EPYC, family 26 model 2"
    listed.write_text(core.format(0, 25))
    assert processor(listed) == "AMD EPYC, family 25 model 2"


@pytest.mark.parametrize("content", [None, "processor\t: 0\n"])
def test_elsewhere_python_knows(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "cpuinfo"
    if content is not None:
        listed.write_text(content)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "some64")
    assert processor(listed) == "some64"
