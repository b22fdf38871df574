"""Tamiyo chooses among all blueprints that fit, a user's own too, and remembers what was culled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import esper
from esper.agents import Tamiyo
from esper.agents.space import Space
from esper.ecology.blueprints import Blueprint, Layout, Value, table
from esper.propose import CullSeed, GrantLease
from tests.live.training import traced

SLOT = "slot:block.out"
OWN: dict[str, Layout] = {"my-own": "vectors", "my-images": "image"}
HEAD = f"blueprint|act=plant|target={SLOT}"


def _scaled(value: Value) -> nn.Module:
    """A layer that starts at zero."""
    layer = nn.Linear(value.width, value.width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _session() -> esper.Session:
    """In which one slot is free, and no axis."""
    model = traced()
    model.pin("axis:*")
    session = esper.Session(model, torch.optim.SGD(model.parameters(), 0.1), lifecycle=None)
    leases = [GrantLease(target=s, holder="me", until=99) for s in model.anatomy.slots if s != SLOT]
    for _ in range(4):
        with session.boundary(1.0) as boundary:
            boundary.submit(*leases)
    return session


def _planted(session: esper.Session, agent: Tamiyo) -> str:
    with session.boundary(1.0) as boundary:
        (record,) = boundary.submit(*agent.propose(boundary.observation))
    assert record.kind == "passed", record.line()
    return str(session.model.ecology.slot(SLOT).blueprint)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """Blueprints of a user: one for vectors, one for images."""
    for name, layout in OWN.items():
        made = Blueprint(name, _scaled, (layout,), "a layer")
        monkeypatch.setitem(table(), name, made)
    return "my-own"


def test_every_blueprint_of_the_layout_is_offered(own: str) -> None:
    with _session().boundary() as boundary:
        offered = Space(Tamiyo.acts, boundary.observation)[HEAD]
    assert set(offered.choices) == {n for n, b in table().items() if "vectors" in b.layouts}
    assert own in offered.choices
    assert "my-images" not in offered.choices
    assert all(offered.allowed)


def test_what_the_user_prefers_comes_first(own: str) -> None:
    assert _planted(_session(), Tamiyo(every=1, warm=1)) == "mlp-small"
    assert _planted(_session(), Tamiyo(every=1, warm=1, prefer=(own,))) == own


def test_what_was_culled_is_not_tried_again_at_once() -> None:
    session, agent = _session(), Tamiyo(every=1, warm=1)
    tried = []
    for _ in range(3):
        tried.append(_planted(session, agent))
        with session.boundary(1.0) as boundary:
            (record,) = boundary.submit(CullSeed(slot=SLOT, quarantine=0))
        assert record.kind == "passed", record.line()
    assert tried == ["mlp-small", "gated-branch", "low-rank"]
    assert session.model.ecology.slot(SLOT).culled == tuple(tried)
    with session.boundary() as boundary:
        figures = boundary.observation.values[SLOT]
    assert [figures[f"culled.{name}"] for name in tried] == [1.0, 1.0, 1.0]
