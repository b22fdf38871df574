"""The headline claims what was measured and accepted, and nothing else."""

from __future__ import annotations

import pytest

from esper.report.data import ReportData
from esper.report.headline import headline
from tests.report import sample

X = "\N{MULTIPLICATION SIGN}"


def case(**changes: object) -> ReportData:
    return sample.complete(word="F1").model_copy(update=changes)


def test_accepted() -> None:
    assert headline(case()) == f"Faster by {X}1.62 [1.58, 1.66] at F1 0.607 of 0.610."
    assert headline(case(quality=None)) == f"Faster by {X}1.62 [1.58, 1.66]."


def test_changed_without_measuring() -> None:
    said = headline(case(final=None))
    assert said == (
        "1 change was applied and not measured: nothing is claimed about speed; F1 0.607 of 0.610."
    )


@pytest.mark.parametrize("outcome", ["reject", "ambiguous"])
def test_changed_and_not_faster(outcome: str) -> None:
    final = sample.VERDICT.model_copy(update={"outcome": outcome, "speedup": 1.0})
    said = headline(case(final=final))
    assert "Faster" not in said
    assert f"{X}1.00" in said
    assert ("not settled" in said) == (outcome == "ambiguous")


def test_accepted_that_is_slower_is_not_called_faster() -> None:
    final = sample.VERDICT.model_copy(update={"speedup": 0.97})
    assert "it is not faster" in headline(case(final=final))


def test_all_refused() -> None:
    assert headline(sample.refused()) == (
        "Left as it was: all 3 proposals were refused before anything was measured."
    )
    measured = sample.VERDICT.model_copy(update={"outcome": "reject", "speedup": 1.004})
    said = headline(sample.refused().model_copy(update={"verdicts": (measured,)}))
    assert said.endswith(f"the best that was measured gave {X}1.00 [1.58, 1.66].")


def test_a_failure_is_told() -> None:
    said = headline(case(records=sample.records()[1:3]))
    assert "all 2 proposals were refused (1 failed and was rolled back)" in said


def test_nothing_proposed() -> None:
    assert headline(sample.empty()) == "Left as it was: nothing was proposed."
