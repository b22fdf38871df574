"""Each storyboard runs from end to end in small, and its log is as good as any."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper import replay
from esper.cli.main import main
from esper.demo.stages import NAMES, Setting, stages
from esper.recorder.log import Log
from tests.cli.support import assert_one_sentence
from tests.report.parsing import Page as Parsed

Capture = pytest.CaptureFixture[str]


def test_stage0_from_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["demo", "stage0", "--short", "--steps", "40", "-o", str(tmp_path)]
    assert main([*arguments, "--progress", "never"]) == 0
    text = capsys.readouterr().out
    assert "replays at 3 of 3 levels agree" in text
    assert "median accuracy" in text
    parsed = Parsed((tmp_path / "stage0.html").read_text())
    path = tmp_path / "stage0.esperlog"
    log = Log(path)
    rewrites = [event for event in log if event.kind == "rewrite"]
    assert {event.agent for event in rewrites} >= {"tamiyo", "emrakul"}
    told = next(e for e in rewrites if e.agent == "tamiyo" and e.code in parsed.text)
    assert main(["why", str(path), told.code]) == 0
    assert "head-sample" in capsys.readouterr().out
    assert main(["replay", str(path), "--level", "decision"]) == 0


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_the_others_in_small(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    setting = Setting(tmp_path, True, 1, 24, progress=lambda done, total, what: said.append(what))
    page = stages()[name](setting)
    assert page.stage == name
    assert said
    assert all(len(arm.metric) == 1 and arm.failures == 0 for arm in page.arms)
    assert "median accuracy" in page.text()
    (path,) = tmp_path.glob("*.esperlog")
    assert replay.decision(Log(path)).equal


def test_logs_of_earlier_runs_stay(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    first = setting.log("stage0")
    first.touch()
    assert setting.log("stage0").name == "stage0-2.esperlog"


def test_names_are_those_of_the_table(tmp_path: Path, capsys: Capture) -> None:
    assert tuple(stages()) == NAMES
    assert main(["demo", "stage7", "-o", str(tmp_path)]) == 2
    assert_one_sentence(capsys.readouterr().err)
