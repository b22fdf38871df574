"""Figures read well and ticks are round and cover their range."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.report import numbers


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.count(1536), "1,536"),
        (numbers.count(22_713_216), "22.7 M"),
        (numbers.count(8_030_000_000), "8.03 G"),
        (numbers.size(999), "999 B"),
        (numbers.size(90_900_000), "90.9 MB"),
        (numbers.times(1.624), "\N{MULTIPLICATION SIGN}1.62"),
        (numbers.times(math.nan), "\N{EN DASH}"),
        (numbers.interval(1.0, None), ""),
        (numbers.change(12, 8), "\N{MINUS SIGN}33%"),
        (numbers.change(1000, 1005), "+0.5%"),
        (numbers.change(10**6, 10**6 + 1), ""),
        (numbers.change(0, 5), ""),
        (numbers.seconds(0.0123), "12.3 ms"),
        (numbers.seconds(0.00002), "20 µs"),
        (numbers.seconds(31.21), "31.2 s"),
        (numbers.seconds(200), "3 min 20 s"),
        (numbers.milliseconds(2), "2.00 ms"),
        (numbers.milliseconds(1234.5), "1,234 ms"),
        (numbers.milliseconds(None), "\N{EN DASH}"),
        (numbers.probability(1e-9), "< 0.001"),
        (numbers.quality(-1.25), "\N{MINUS SIGN}1.250"),
        (numbers.quality(123.456), "123.5"),
    ],
)
def test_text(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_are_round_inside_and_distinct(low: float, width: float, wanted: int) -> None:
    high = low + width
    found = numbers.ticks(low, high, wanted)
    step = numbers.nice_step((high - low) / wanted)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - f) for f in (1, 2, 5)) < 1e-6
    assert all(low - step * 1e-3 <= value <= high + step * 1e-3 for value, _ in found)
    assert len({label for _, label in found}) == len(found)
    assert wanted / 2.5 - 1 <= len(found) <= wanted + 1
