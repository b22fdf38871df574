"""Settings of every test: one thread, fixed seeds, repeatable examples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from esper.ir.model import Model
from esper.manager import PassManager, Verify

# Examples are the same in every run, and no deadline depends on how busy the machine is.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and sums come out in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def full_verification(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole graph is verified before and after every rewrite of every test.

    Tests marked `own_verification` choose for themselves, because they test the choice or verify
    the result of many rewrites once.
    """
    if request.node.get_closest_marker("own_verification") is not None:
        return
    original = PassManager.__init__

    def verifying(
        self: PassManager, model: Model, *, verify: Verify = "full", **options: Any
    ) -> None:
        original(self, model, verify="full" if verify == "incremental" else verify, **options)

    monkeypatch.setattr(PassManager, "__init__", verifying)
