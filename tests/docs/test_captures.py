"""Captured output belongs to the commands of the tour, and the quick ones print it still."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__ as suites
from benchmarks import readme
from docs import capture
from examples import assets


@pytest.mark.parametrize("name", [*capture.COMMANDS, *capture.SESSIONS])
def test_each_capture_is_of_the_command_shown(name: str) -> None:
    text = (capture.CAPTURES / f"{name}.txt").read_text()
    for line in capture.COMMANDS.get(name, ()):
        assert f"$ {line}\n" in text
    for line in capture.SESSIONS.get(name, "").strip().splitlines():
        assert f">>> {line}" in text or f"... {line}" in text


def test_no_capture_is_left_over() -> None:
    known = {f"{name}.txt" for name in (*capture.COMMANDS, *capture.SESSIONS)}
    assert {path.name for path in capture.CAPTURES.iterdir()} == known


@pytest.mark.parametrize("name", ["errors", "passes"])
def test_quick_commands_print_what_is_shown(name: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(capture.ROOT / "examples")
    (tmp_path / "digits.pth").write_bytes(assets.ccexam_weights("mnist").read_bytes())
    shown = (capture.CAPTURES / f"{name}.txt").read_text()
    assert capture.capture(name, tmp_path) == shown, f"run `python -m docs.capture {name}`"


def test_a_session_shows_statements_and_what_they_print() -> None:
    text = capture.session("x = 2\nx + 1\nprint(\n    x)\n")
    assert text == ">>> x = 2\n>>> x + 1\n3\n>>> print(\n...     x)\n2\n"


def test_every_suite_has_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert suites.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for name, suite in suites.SUITES.items():
        assert name in listed
        assert (readme.ROOT / "benchmarks" / suite.script).is_file()
    with pytest.raises(SystemExit):
        suites.main(["gait"])
    assert "there is no suite 'gait'" in capsys.readouterr().err


CPUS = ("kernels_cpu", "kernels_cpu_amx", "kernels_cpu_avx2")


@pytest.mark.parametrize(
    ("short", "tiles", "here"), [(True, False, 0), (True, True, 1), (False, False, 2)]
)
def test_a_suite_about_another_machine_is_not_run(
    short: bool,
    tiles: bool,
    here: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of these is about this CPU, the others would overwrite figures of other ones."""
    monkeypatch.setattr(suites, "has_products", lambda dtype: short)
    monkeypatch.setattr(suites, "has_tiles", lambda: tiles)
    others = [name for name in CPUS if suites.SUITES[name].why_not()]
    assert others == [name for name in CPUS if name != CPUS[here]]
    monkeypatch.setattr(readme, "pages", list)
    for other in others:
        with pytest.raises(SystemExit):
            suites.main([other])
        assert f"suite {other!r} cannot run here: it needs a CPU" in capsys.readouterr().err
        with monkeypatch.context() as patch:
            patch.setattr(suites, "SUITES", {other: suites.SUITES[other]})
            assert suites.main([]) == 0
        assert f"== {other} is left out" in capsys.readouterr().out


def test_every_figure_of_the_pages_has_a_suite() -> None:
    for page in readme.pages():
        for _, kind, name, *_ in readme._REGION.findall(page.read_text()):
            known = suites.SUITES if kind == "figures" else [*capture.COMMANDS, *capture.SESSIONS]
            assert name in known, f"{page.name} shows {name}"
