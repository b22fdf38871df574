"""Stats: counts by pass, kind and code, and sizes before and after."""

from __future__ import annotations

import torch

from esper.instruments import Stack, Stats
from tests.instruments.support import model, record


def run() -> Stats:
    stats, m = Stats(), model()
    stack = Stack([stats])
    with stack.run(m, "shrink,tidy"):
        for one in (record(), record(), record("missed", "frozen-axis"), record("missed", "empty")):
            stack.settled(m, one.model_copy(update={"pass_name": "shrink"}))
        stack.settled(m, record("failure", "error").model_copy(update={"pass_name": "tidy"}))
        stack.settled(m, record().model_copy(update={"pass_name": ""}))
        m.get_submodule("linear").weight = torch.nn.Parameter(torch.zeros(1, 2))
    return stats


def test_data() -> None:
    assert run().data() == {
        "passes": {
            "shrink": {"missed": {"empty": 1, "frozen-axis": 1}, "passed": {"applied": 2}},
            "tidy": {"failure": {"error": 1}},
            "user": {"passed": {"applied": 1}},
        },
        "model": {"nodes": [3, 3], "parameters": [6, 4], "bytes": [24, 16]},
    }


def test_text() -> None:
    kinds, codes, sizes = run().text().split("\n\n")
    assert [line.split() for line in kinds.splitlines()] == [
        ["pass", "passed", "missed", "failure", "analysis"],
        ["shrink", "2", "2", "0", "0"],
        ["tidy", "0", "0", "1", "0"],
        ["user", "1", "0", "0", "0"],
    ]
    assert "shrink missed frozen-axis      1" in codes
    assert sizes.splitlines()[1].split() == ["nodes", "3", "3"]


def test_numbers_before_a_run_are_empty() -> None:
    assert Stats().data() == {"passes": {}, "model": {}}
