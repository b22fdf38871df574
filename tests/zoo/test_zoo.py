"""Every entry of the zoo through the whole protocol; `make zoo` runs all, `make test` the fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.catalogue import ENTRIES
from tests.zoo.check import check

pytestmark = pytest.mark.own_verification  # the oracle verifies the result of all cuts


def _cases() -> list[object]:
    return [
        pytest.param(name, marks=() if entry.fast else pytest.mark.zoo)
        for name, entry in ENTRIES.items()
    ]


@pytest.mark.parametrize("name", _cases())
def test_protocol(name: str, tmp_path: Path) -> None:
    check(ENTRIES[name], tmp_path)
