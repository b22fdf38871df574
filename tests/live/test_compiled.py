"""Compiled models change too: what runs is always the present graph, and each price is told."""

from __future__ import annotations

import itertools

import pytest
import torch

import esper
from tests.live.training import CUT, DROP, batch, step, traced


@pytest.fixture(autouse=True)
def _clean() -> None:
    torch._dynamo.reset()


def test_a_compiled_model_follows_every_change() -> None:
    model = traced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session = esper.Session(model, optimizer)
    session.compile(backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    counts = []
    for proposal in (CUT, None, DROP, None):
        step(model, optimizer, batch(generator))
        inputs = batch(generator)[0]
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(inputs), model.forward(inputs))
        model.train()
        counts.append(len(session.compilations))
        with session.boundary() as boundary:
            if proposal is not None:
                assert boundary.submit(proposal)[0].kind == "passed"
    assert all(c.seconds > 0 for c in session.compilations)
    assert counts[0] > 0
    changes = [after - before for before, after in itertools.pairwise(counts)]
    assert changes[0] > 0  # after CUT
    assert changes[1] == 0  # training and evaluation alternate, and neither is compiled again
    assert changes[2] > 0  # after DROP
    session.close()


def test_many_cuts_never_fall_back_to_eager() -> None:
    model = traced()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session = esper.Session(model, optimizer)
    session.compile(backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for unit in range(10):  # PyTorch gives up after eight
        step(model, optimizer, batch(generator))
        with session.boundary() as boundary:
            cut = esper.propose.PruneUnits(axis=CUT.axis, units=(unit,))
            assert boundary.submit(cut)[0].kind == "passed"
    step(model, optimizer, batch(generator))
    ticks = {c.tick for c in session.compilations}
    assert ticks == set(range(11))
    session.close()


def test_giving_up_is_an_error() -> None:
    model = traced()
    session = esper.Session(model, torch.optim.SGD(model.parameters(), lr=0.01))
    session.compile(backend="aot_eager")

    def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
        return x * by

    compiled = torch.compile(scaled, backend="aot_eager", dynamic=False)

    def drive() -> None:
        for size in range(2, 40):
            compiled(torch.ones(size), 2.0)

    with pytest.raises(Exception, match="recompile"):
        drive()
    session.close()
    torch._dynamo.reset()
    drive()  # a closed session leaves PyTorch as it was
