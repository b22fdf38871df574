"""What `optimize` returns arrives in the report, each figure where it belongs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from esper.judge import Judgement
from esper.optimization import Result
from esper.report.build import from_result
from esper.report.data import ReportData
from esper.report.headline import headline
from esper.report.html import render
from tests.report.measured import result, verdict
from tests.report.parsing import Page

X = "\N{MULTIPLICATION SIGN}"


def figures(after: float) -> dict[str, Any]:
    return {"kind": "metric", "quality_before": 0.9, "quality_after": after, "quality_floor": 0.8}


@pytest.fixture(scope="module")
def cut() -> Result:
    return result()


def test_committed_and_measured(cut: Result) -> None:
    data = from_result(cut, title="Net", command="esper-opt net.pt2")
    assert headline(data) == f"Faster by {X}1.50 [1.40, 1.60]."
    assert data.before.parameters == 6 * 10 + 10 + 10 * 4 + 4
    assert data.after is not None
    assert data.after.parameters == 6 * 8 + 8 + 8 * 4 + 4
    assert data.before.layers == 2
    (before,) = [row for row in data.before.axes if row.frozen is None]
    (after,) = [row for row in data.after.axes if row.id == before.id]
    assert (before.size, after.size) == (10, 8)
    assert set(before.units) - set(after.units) == {2, 7}
    assert data.verdicts == ()  # the only judgement is the verdict on the whole
    assert data.exact is True
    assert data.environment["Device name"] == "Made-up processor"
    assert data.environment["Input shapes"] == f"5{X}6"
    text = Page(render(data)).text
    assert "esper-opt net.pt2" in text
    assert "2.00 ms" in text
    assert any("Quality was not judged" in note for note in data.notes)
    assert ReportData.model_validate_json(data.model_dump_json()) == data


def test_trained_weights_are_not_called_exact(cut: Result) -> None:
    data = from_result(replace(cut, finetuned=True), title="Net")
    assert data.exact is False
    assert "weights were fine-tuned" in Page(render(data)).text
    assert "weights were fine-tuned" not in Page(render(from_result(cut, title="Net"))).text


def test_refused() -> None:
    data = from_result(result(refuse=True), title="Net")
    assert data.after is None
    assert data.final is None
    assert data.exact is None
    assert headline(data).startswith("Left as it was: the one proposal was refused")
    assert "Python" in data.environment
    assert data.records[0].reason in Page(render(data)).text


def test_unmeasured_change_claims_nothing(cut: Result) -> None:
    bare = Result(cut.model, cut.baseline, cut.pipeline, cut.records, [])
    data = from_result(bare, title="Net")
    assert "not measured" in headline(data)
    assert any("Step time was not measured" in note for note in data.notes)


def test_points_compound_what_was_committed_before(cut: Result) -> None:
    judged = [
        ("first", Judgement(True, "accepted", "", figures(0.88), verdict(1.5))),
        ("second", Judgement(False, "gate-reject", "", figures(0.85), verdict(1.1, "reject"))),
        ("too lossy", Judgement(False, "quality", "", figures(0.2))),
        ("third", Judgement(True, "accepted", "", {}, verdict(2.0))),
    ]
    whole = verdict(2.9)
    full = Result(
        cut.model, cut.baseline, "p", cut.records, judged, whole, "openvino", figures(0.88)
    )
    data = from_result(full, title="Net", metric="accuracy")
    assert [p.label for p in data.points] == ["first", "second", "the whole change"]
    first, second, last = data.points
    assert first.speedup == pytest.approx(1.5)
    assert second.speedup == pytest.approx(1.5 * 1.1)
    assert second.lower == pytest.approx(1.4 * 1.0)
    assert (second.quality, second.accepted) == (0.85, False)
    assert (last.speedup, last.lower, last.accepted) == (2.9, 2.8, True)
    assert [v.outcome for v in data.verdicts] == ["accept", "reject", "accept"]
    assert data.quality is not None
    assert (data.quality.metric, data.quality.floor) == ("accuracy", 0.8)
    assert headline(data) == f"Faster by {X}2.90 [2.80, 3.00] at accuracy 0.880 of 0.900."


def test_times_leave_sums_out(cut: Result) -> None:
    seconds = {"prune": {"runs": 2.0, "plan": 0.5, "gate": 3.0, "other": 0.0, "total": 3.5}}
    (row,) = from_result(cut, title="Net", timing=seconds).timing
    assert row.pass_name == "prune"
    assert row.total == pytest.approx(3.5)
    assert "runs" not in row.seconds
