"""Printing, dumps, remarks and bisection: what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.errors import OutputError, UsageError
from esper.instruments import Bisect, Dump, Instrument, Printing, Remarks, Stack
from tests.instruments.support import OTHER, PROPOSAL, Shrink, Text, Tidy, change, model, record


def run(instrument: Instrument) -> None:
    """`shrink` changes the model, `tidy` does not, `shrink{ratio=0.1}` does."""
    m = model("first")
    stack = Stack([instrument])
    with stack.run(m, "shrink,tidy,shrink{ratio=0.1}"):
        for pass_, text in ((Shrink(), "second"), (Tidy(), "second"), (Shrink(0.1), "third")):
            stack.before_pass(m, pass_)
            change(m, text)
            stack.after_pass(m, pass_, [])


BEFORE_SHRINK = ["before pass 0: shrink|first", "before pass 2: shrink{ratio=0.1}|second"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("tidy", None, ["before pass 1: tidy|second"]),
        (None, "tidy", ["after pass 1: tidy|second"]),
        (
            "shrink",
            None,
            ["before pass 0: shrink|first", "before pass 2: shrink{ratio=0.1}|second"],
        ),
        (None, "change", ["after pass 0: shrink|second", "after pass 2: shrink{ratio=0.1}|third"]),
        (
            "change",
            None,
            ["before pass 0: shrink|first", "before pass 2: shrink{ratio=0.1}|second"],
        ),
        (
            "all",
            "change",
            [
                *("before pass 0: shrink|first", "after pass 0: shrink|second"),
                *("before pass 1: tidy|second", "before pass 2: shrink{ratio=0.1}|second"),
                "after pass 2: shrink{ratio=0.1}|third",
            ],
        ),
        (
            None,
            "all",
            [
                *("after pass 0: shrink|second", "after pass 1: tidy|second"),
                "after pass 2: shrink{ratio=0.1}|third",
            ],
        ),
        (None, None, []),
    ],
)
def test_printing(before: str | None, after: str | None, expected: list[str]) -> None:
    blocks: list[str] = []
    run(Printing(before, after, known=["shrink", "tidy"], write=blocks.append))
    assert [b.replace("\n", "|").removeprefix("; IR ") for b in blocks] == expected


def test_printing_prints_nothing_it_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a large model is costly: it is only made when it is needed."""
    made: list[str] = []

    def text(self: Text) -> str:
        made.append(self.text)
        return self.text

    monkeypatch.setattr(Text, "__str__", text)
    run(Printing("tidy", known=["shrink", "tidy"], write=lambda block: None))
    assert made == ["second"]


def test_printing_of_unknown_pass() -> None:
    with pytest.raises(UsageError, match="unknown pass 'shrnk'; did you mean 'shrink'"):
        Printing(after="shrnk", known=["shrink"])


def test_dump(tmp_path: Path) -> None:
    run(Dump(tmp_path / "new" / "dumps"))
    files = {p.name: p.read_text() for p in (tmp_path / "new" / "dumps").iterdir()}
    assert files == {
        "input.txt": "; input of: shrink,tidy,shrink{ratio=0.1}\nfirst\n",
        "000_shrink.txt": "; after shrink\nsecond\n",
        "001_tidy.txt": "; after tidy\nsecond\n",
        "002_shrink.txt": "; after shrink{ratio=0.1}\nthird\n",
    }


def test_dump_does_not_mix_runs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("other files do not matter")
    run(Dump(tmp_path))
    with pytest.raises(OutputError, match=r"holds dumps of an earlier run \(000_shrink.txt\)"):
        Dump(tmp_path)


def test_dump_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the dump directory"):
        Dump(tmp_path / "file")


def test_dump_that_cannot_write(tmp_path: Path) -> None:
    dump = Dump(tmp_path)
    (tmp_path / "001_tidy.txt").mkdir()
    with pytest.raises(OutputError, match="cannot write a dump"):
        run(dump)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", [0, 1, 2, 3]),
        ("missed", [1]),
        ("missed|failure", [1, 2]),
        (",frozen", [1]),
        ("passed,fc/out.*cut", [0]),
        ("passed,frozen", []),
        ("analysis,", [3]),
        (r",\[applied,?", [0]),
    ],
)
def test_remarks(text: str, shown: list[int]) -> None:
    records = [
        record(),
        record("missed", "frozen-axis", "the axis is frozen"),
        record("failure", "error", "it broke"),
        record("analysis", "cost", "nothing to say"),
    ]
    lines: list[str] = []
    remarks = Remarks.from_text(text, write=lines.append)
    for one in records:
        remarks.settled(model(), one)
    assert lines == [records[i].line() for i in shown]


def test_remarks_filter_is_checked() -> None:
    with pytest.raises(UsageError, match="unknown kind of remark 'mised'; did you mean 'missed'"):
        Remarks.from_text("mised,x")
    with pytest.raises(UsageError, match=r"'\(' is no regular expression"):
        Remarks.from_text("passed,(")


LINES = [
    "BISECT: running proposal (1) prune-units axis:fc/out by shrink{ratio=0.1}",
    "BISECT: running proposal (2) eliminate-dead relu add by user",
    "BISECT: running proposal (3) prune-units axis:fc/out by tidy",
]


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 3, 9])
def test_bisect_refuses_above_the_limit_and_numbers_stay(limit: int) -> None:
    lines: list[str] = []
    stack = Stack([Bisect(limit, write=lines.append)])
    refusals = [
        stack.before_proposal(model(), pass_, proposal)
        for pass_, proposal in ((Shrink(0.1), PROPOSAL), (None, OTHER), (Tidy(), PROPOSAL))
    ]
    allowed = 3 if limit == -1 else min(limit, 3)
    assert [r is None for r in refusals] == [True] * allowed + [False] * (3 - allowed)
    assert lines[:allowed] == LINES[:allowed]
    assert lines[allowed:] == [line.replace("running", "NOT running") for line in LINES[allowed:]]
    for refusal in refusals[allowed:]:
        assert refusal is not None
        assert refusal.code == "bisect-limit"
        assert f"above the bisect limit {limit}" in refusal.reason


def test_bisect_limit_is_checked() -> None:
    with pytest.raises(UsageError, match="-1 or more, not -2"):
        Bisect(-2)


def test_reports_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(Printing(after="tidy", known=["tidy"]))
    Bisect(-1).before_proposal(model(), None, OTHER)
    Remarks().settled(model(), record())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "; IR after pass 1: tidy",
        "second",
        "BISECT: running proposal (1) eliminate-dead relu add by user",
        record().line(),
    ]
