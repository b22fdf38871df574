"""Order of hooks, vetoes, and errors of instruments beside errors of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from esper.instruments import Instrument, Stack
from esper.ir.model import Model
from esper.passbase import Pass
from esper.plan import Refusal
from esper.propose import EliminateDead, Proposal
from esper.records import Record

MODEL = cast(Model, None)  # these instruments never look at it
PASS = Pass()
PROPOSAL = EliminateDead(nodes=("relu",))
RECORD = Record(kind="passed", code="applied", reason="done", proposal=PROPOSAL)


class Log(Instrument):
    """Writes down each call, and raises or refuses where told."""

    def __init__(self, tag: str, log: list[str], raises: str = "", refuses: str = "") -> None:
        self.tag, self.log, self.raises, self.refuses = tag, log, raises, refuses

    def _call(self, hook: str) -> None:
        self.log.append(f"{self.tag}.{hook}")
        if hook == self.raises:
            raise OSError(f"{self.tag} is full")

    def enter(self, model: Model, pipeline: str) -> None:
        self._call(f"enter({pipeline})")

    def exit(self, model: Model) -> None:
        self._call("exit")

    def before_pass(self, model: Model, pass_: Pass) -> None:
        self._call("before_pass")

    def after_pass(self, model: Model, pass_: Pass, records: Sequence[Record]) -> None:
        self._call("after_pass")

    def before_proposal(
        self, model: Model, pass_: Pass | None, proposal: Proposal
    ) -> Refusal | None:
        self._call("before_proposal")
        return Refusal(self.refuses, "not now") if self.refuses else None

    def after_proposal(self, model: Model, pass_: Pass | None, record: Record) -> None:
        self._call("after_proposal")

    def after_failure(self, model: Model, pass_: Pass | None, error: BaseException) -> None:
        self._call("after_failure")

    def enter_phase(self, phase: str) -> None:
        self._call(f"enter_phase({phase})")

    def exit_phase(self, phase: str) -> None:
        self._call("exit_phase")


def two(**options: Any) -> tuple[list[str], Stack]:
    log: list[str] = []
    return log, Stack([Log("a", log), Log("b", log, **options)])


def test_hooks_nest() -> None:
    log, stack = two()
    with stack.run(MODEL, "prune"):
        stack.before_pass(MODEL, PASS)
        assert stack.before_proposal(MODEL, PASS, PROPOSAL) is None
        with stack.phase("plan"):
            log.append("work")
        stack.after_proposal(MODEL, PASS, RECORD)
        stack.after_pass(MODEL, PASS, [RECORD])
    assert log == [
        *("a.enter(prune)", "b.enter(prune)", "a.before_pass", "b.before_pass"),
        *("a.before_proposal", "b.before_proposal", "a.enter_phase(plan)", "b.enter_phase(plan)"),
        *("work", "b.exit_phase", "a.exit_phase", "b.after_proposal", "a.after_proposal"),
        *("b.after_pass", "a.after_pass", "b.exit", "a.exit"),
    ]


def test_first_veto_wins_and_all_see_the_proposal() -> None:
    log: list[str] = []
    stack = Stack([Log("a", log), Log("b", log, refuses="first"), Log("c", log, refuses="second")])
    refusal = stack.before_proposal(MODEL, PASS, PROPOSAL)
    assert refusal is not None
    assert refusal.code == "first"
    assert log == ["a.before_proposal", "b.before_proposal", "c.before_proposal"]


def test_error_of_an_instrument_names_it_and_the_others_still_run() -> None:
    log, stack = two(raises="after_pass")
    with pytest.raises(OSError, match="b is full") as caught:
        stack.after_pass(MODEL, PASS, [])
    assert caught.value.__notes__ == ["raised by instrument instrument in after_pass"]
    assert log == ["b.after_pass", "a.after_pass"]


@pytest.mark.parametrize("hook", ["exit", "exit_phase"])
def test_instrument_error_does_not_hide_the_error_under_way(hook: str) -> None:
    log, stack = two(raises=hook)
    with (
        pytest.raises(ValueError, match="original") as caught,
        stack.run(MODEL),
        stack.phase("apply"),
    ):
        raise ValueError("original")
    assert caught.value.__notes__ == [f"then instrument instrument failed in {hook}: b is full"]
    assert log[-4:] == ["b.exit_phase", "a.exit_phase", "b.exit", "a.exit"]


def test_after_failure_keeps_the_error() -> None:
    log, stack = two(raises="after_failure")
    error = ValueError("original")
    stack.after_failure(MODEL, None, error)
    assert error.__notes__ == ["then instrument instrument failed in after_failure: b is full"]
    assert log == ["b.after_failure", "a.after_failure"]


def test_only_entered_instruments_are_left() -> None:
    log, stack = two(raises="enter()")
    with pytest.raises(OSError, match="b is full"), stack.run(MODEL):
        log.append("work")
    assert log == ["a.enter()", "b.enter()", "a.exit"]
