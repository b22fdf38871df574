"""Figures and captured output on the pages are those of the files, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme

RESULT: dict[str, Any] = {
    "title": "Speed",
    "columns": ["model", "speed", "kept"],
    "rows": [
        {"model": "a|b", "speed": 1.23456, "kept": True},
        {"model": "c", "speed": 2.0, "kept": False},
    ],
    "notes": ["Bounds at 99%."],
    "device": "Some CPU, 2 cores",
    "threads": 2,
    "versions": {"torch": "2.13.0", "python": "3.11.2"},
    "command": "python run.py",
}
PAGE = "before\n<!-- figures:speed -->\nold\n<!-- /figures -->\nafter\n"


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_regenerating_changes_nothing(page: Path) -> None:
    text = page.read_text()
    assert readme.rewrite(text) == text, "run `python -m benchmarks.readme`"


def test_a_result_file_becomes_a_table(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps(RESULT))
    assert readme.rewrite(PAGE, tmp_path) == (
        "before\n<!-- figures:speed -->\n"
        "**Speed**\n\n"
        "| model | speed | kept |\n| --- | ---: | --- |\n"
        "| a\\|b | 1.235 | yes |\n| c | 2.0 | no |\n\n"
        "Bounds at 99%.\n\n"
        "<sub>Some CPU, 2 cores, 2 threads, python 3.11.2, torch 2.13.0 (`python run.py`)</sub>\n"
        "<!-- /figures -->\nafter\n"
    )


def test_columns_and_rows_are_chosen(tmp_path: Path) -> None:
    text = readme.render(RESULT, {"columns": "speed,model", "where": "kept:no"})
    assert "| speed | model |" in text
    assert "a\\|b" not in text
    with pytest.raises(ValueError, match="no column 'spead'; there are model, speed, kept"):
        readme.render(RESULT, {"columns": "spead"})


def test_the_form_of_the_gate_benchmark() -> None:
    environment = {
        "device": "cpu",
        "device_name": "Some CPU",
        "threads": 1,
        "python": "3.11.2",
        "versions": {"torch": "2.13.0"},
    }
    rows = [{"true_ratio": 1.05, "cell": "all", "rate": 0.9583}]
    text = readme.render({"environment": environment, "rows": rows})
    assert "| true ratio | cell | rate |" in text
    assert "| 1.05 | all | 95.8% |" in text
    assert "<sub>Some CPU, 1 thread, python 3.11.2, torch 2.13.0</sub>" in text


def test_what_is_not_measured_says_so(tmp_path: Path) -> None:
    assert "*not measured yet (`python -m benchmarks speed` does)*" in readme.rewrite(
        PAGE, tmp_path
    )


def test_captured_output_is_quoted(tmp_path: Path) -> None:
    page = "<!-- capture:tour -->\n<!-- /capture -->\n"
    assert "not captured yet" in readme.rewrite(page, tmp_path, tmp_path)
    (tmp_path / "tour.txt").write_text("$ esper-opt x\ndone\n")
    text = readme.rewrite(page, tmp_path, tmp_path)
    assert "```text\n$ esper-opt x\ndone\n```\n<!-- /capture -->" in text
    assert readme.rewrite(text, tmp_path, tmp_path) == text


@pytest.mark.parametrize("page", ["<!-- figures:speed -->\nx\n", "x\n<!-- /capture -->\n"])
def test_a_region_that_is_not_closed_is_an_error(page: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not closed"):
        readme.rewrite(page, tmp_path)
