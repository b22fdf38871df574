"""The collector is paused, and comes back as it was."""

from __future__ import annotations

import gc

import pytest

from esper.ir.collection import no_collection


def test_the_collector_comes_back_after_an_error() -> None:
    seen: list[bool] = []

    def fail() -> None:
        with no_collection():
            seen.append(gc.isenabled())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
