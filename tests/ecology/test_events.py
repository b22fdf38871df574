"""The buffer of recent events is a fixed block of plain numbers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from esper.ecology.events import FIELDS, KINDS, SIZE, DropShot, EventBuffer, shot, target_number

EVENTS = st.builds(
    DropShot,
    st.integers(0, 10**6),
    st.sampled_from([*KINDS, "someone-elses"]),
    st.text(max_size=8),
    st.sampled_from([-1, 0, 1]),
    st.floats(allow_nan=False),
)


@given(st.lists(EVENTS, max_size=40), st.integers(0, 10**7))
def test_the_block_has_one_size_and_one_range(events: list[DropShot], tick: int) -> None:
    buffer = EventBuffer()
    for event in events:
        buffer.push(event)
    assert buffer.events() == events[-SIZE:]
    numbers = buffer.numbers(tick)
    assert [len(row) for row in numbers] == [len(FIELDS)] * SIZE
    assert all(math.isfinite(x) and -1 <= x <= 1 for row in numbers for x in row)
    again = EventBuffer()
    again.assign(buffer.data())
    assert again.numbers(tick) == numbers


def test_newest_first_and_zeros_behind() -> None:
    buffer = EventBuffer()
    buffer.push(shot(3, "lyse", "phage:a", "missed"))
    buffer.push(shot(4, "note-probe", "phage:a", "passed", {"change": 0.5}))
    first, second, *rest = buffer.numbers(4)
    assert first[0] == 0.0
    assert (first[3], first[4]) == (1.0, math.tanh(0.5))
    assert second[0] > 0
    assert second[3] == 0.0
    assert first[2] == second[2] == target_number("phage:a") != target_number("phage:b")
    assert first[1] != second[1]
    assert rest == [[0.0] * len(FIELDS)] * (SIZE - 2)


def test_what_broke_counts_below_what_was_refused() -> None:
    assert [shot(0, "lyse", "", kind).result for kind in ("passed", "missed", "failure")] == [
        1,
        0,
        -1,
    ]
