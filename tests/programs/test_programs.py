"""Generated programs. Every case of the op rules is planted twice; `ESPER_PROGRAMS` asks for more.

ESPER_PROGRAMS=30 pytest tests/programs     # 30 programs for each case, drawn at random
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.ir.rule_cases import CASES
from tests.programs.program import UNARY, Add, Cat, Linear, Plant, Program, Step, Unary
from tests.programs.properties import check

pytestmark = pytest.mark.own_verification  # the oracle verifies the result of all cuts

EACH = int(os.environ.get("ESPER_PROGRAMS", "2"))
_AT = st.integers(0, 5)
_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.builds(Unary, st.sampled_from(sorted(UNARY)), _AT),
        st.builds(Linear, st.integers(2, 7), _AT),
        st.builds(Add, _AT, _AT),
        st.builds(Cat, _AT, _AT, st.booleans()),
        st.builds(Plant, st.sampled_from(sorted(CASES)), _AT),
    ),
    max_size=3,
)


@st.composite
def programs(draw: st.DrawFn, case: str) -> Program:
    """A program with `case` in the middle, and sometimes once more with the same weights."""
    before, after = draw(_STEPS), draw(_STEPS)
    again = [Plant(case, draw(_AT), tied=True)] if draw(st.booleans()) else []
    planted = Plant(case, len(before))
    return Program(draw(st.integers(2, 6)), (*before, planted, *again, *after))


@pytest.mark.parametrize("case", CASES)
def test_programs_with_each_case_planted(case: str) -> None:
    @settings(
        max_examples=EACH + 1,
        derandomize="ESPER_PROGRAMS" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(case))
    def run(program: Program) -> None:
        if len(program.steps) > 1:  # the first that is drawn is the case alone: see test_rules
            event("axes to cut" if check(program) else "nothing to cut")

    run()


# Programs that showed a bug, as they were shrunk; each says what was wrong.
FOUND: tuple[Program, ...] = (
    # Dead nodes had split an axis, which was held to its old units before it was recognised again.
    Program(
        5,
        (
            Unary("silu", 2),
            Cat(5, 2, True),
            Cat(2, 0),
            Plant("addmm", 3),
            Cat(2, 0),
            Cat(5, 2, True),
            Cat(2, 0),
        ),
    ),
    Program(
        3,
        (
            Linear(5, 4),
            Linear(5, 3),
            Plant("argmax", 2),
            Plant("grouped conv", 5),
            Cat(4, 2, True),
            Unary("gelu", 4),
        ),
    ),
)


@pytest.mark.parametrize("program", FOUND, ids=repr)
def test_programs_that_showed_a_bug(program: Program) -> None:
    check(program)
