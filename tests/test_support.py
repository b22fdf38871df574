"""The FileCheck wrapper must be able to fail."""

from __future__ import annotations

import pytest

from tests.support import filecheck


def test_filecheck_passes_and_fails() -> None:
    filecheck("one\ntwo\n", "CHECK: one\nCHECK-NEXT: two")
    with pytest.raises(AssertionError, match="three"):
        filecheck("one\ntwo\n", "CHECK: one\nCHECK-NEXT: three")
    with pytest.raises(AssertionError, match="No check strings"):
        filecheck("one\n", "CHEKC: one")
