"""What a row of the end-to-end benchmark says of a run of `esper-opt`."""

from __future__ import annotations

from typing import Any

from benchmarks.end_to_end.random_transformers import outcome

FASTER = {"milliseconds_before": 9.0, "milliseconds_after": 3.0, "speedup": 3.0}
WHOLE = {
    "baseline": {"milliseconds": 8.0},
    "candidate": {"milliseconds": 4.0},
    "speedup": 2.0,
    "lower": 1.9,
    "upper": 2.1,
}


def said(*judgements: tuple[str, dict[str, float]], verdict: Any = None) -> dict[str, Any]:
    return {
        "judgements": [
            {"code": code, "figures": figures, "reason": "too poor"} for code, figures in judgements
        ],
        "verdict": verdict,
        "committed": 0 if verdict is None else 5,
        "bytes": [4_000_000, 1_000_000],
    }


def test_what_was_kept_is_measured_as_a_whole_whatever_was_refused_last() -> None:
    run = said(("gate-reject", {}), ("accepted", FASTER), ("gate-reject", {}), verdict=WHOLE)
    row = outcome(run)
    assert (row["outcome"], row["speed-up"], row["kept"]) == ("accepted", 2.0, 5)
    assert (row["ms before"], row["ms after"]) == (8.0, 4.0)
    assert (row["lower"], row["upper"], row["MB after"]) == (1.9, 2.1, 1.0)


def test_a_refused_run_shows_the_whole_and_not_its_halves() -> None:
    row = outcome(said(("gate-ambiguous", FASTER), ("gate-reject", {})))
    assert (row["outcome"], row["speed-up"], row["kept"]) == ("gate-ambiguous", 3.0, 0)


def test_a_refusal_without_a_measurement_has_no_figures() -> None:
    row = outcome(said(("quality", {})))
    assert (row["outcome"], row["speed-up"], row["ms after"]) == ("quality: too poor", None, None)
    assert outcome(said()) == {"outcome": "nothing was proposed"}
