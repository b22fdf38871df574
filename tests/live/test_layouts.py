"""State layouts: which dim of the parameter each dim of a state tensor is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import esper
from esper.live import layouts
from esper.live.policy import Moments
from esper.state import Grow, Patch, Rearrange, Replace, Select
from tests.live.training import CUT, traced

OLD = torch.arange(12.0).reshape(4, 3)
KEEP = Select(0, (0, 2))
GROW = Grow(0, (0, 1, 2, 3), torch.ones(2, 3), (1, 3))


class Rows(torch.optim.SGD):
    """Keeps one number for each row, in a layout of its own."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                gradient = parameter.grad.reshape(len(parameter), -1).abs().sum(1)
                state["rows"] = state.get("rows", torch.zeros_like(gradient)) + gradient
        return super().step(closure)


def _stepped(optimizer: torch.optim.Optimizer, model: Any) -> None:
    model(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
    optimizer.step()


def test_an_unknown_layout_refuses_the_change_until_it_is_registered() -> None:
    model = traced()
    optimizer = Rows(model.parameters(), lr=0.1)
    _stepped(optimizer, model)
    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        (record,) = boundary.submit(CUT)
    assert record.kind == "failure"
    assert "state 'rows' of Rows" in record.reason
    assert "register_optimizer_layout" in record.reason
    assert model.anatomy.axes[CUT.axis].size == 12

    esper.register_optimizer_layout(Rows, lambda key, shape: (0,))
    try:
        with session.boundary() as boundary:
            assert boundary.submit(CUT)[0].kind == "passed"
        assert optimizer.state[model.get_parameter("block.0.weight")]["rows"].shape == (9,)
        assert optimizer.state[model.get_parameter("block.2.weight")]["rows"].shape == (10,)
        with pytest.raises(esper.EsperError, match="has a layout already"):
            esper.register_optimizer_layout(Rows, lambda key, shape: (1,))
    finally:
        layouts._LAYOUTS.clear()


@pytest.mark.parametrize("how", ["keep", "asymmetric"])
def test_selection_moves_every_moment(how: Any) -> None:
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(layouts.follow(KEEP, key, OLD, (0, 1), (4, 3), how), OLD[[0, 2]])


def test_copies_inherit_or_part_ways() -> None:
    kept = layouts.follow(GROW, "exp_avg", OLD, (0, 1), (4, 3), "keep")
    apart = layouts.follow(GROW, "exp_avg", OLD, (0, 1), (4, 3), "asymmetric")
    assert torch.equal(kept, torch.cat([OLD, OLD[[1, 3]]]))
    assert torch.equal(apart, torch.cat([OLD, torch.zeros(2, 3)]))
    policies: tuple[Moments, ...] = ("keep", "asymmetric")
    for how in policies:
        second = layouts.follow(GROW, "exp_avg_sq", OLD, (0, 1), (4, 3), how)
        assert torch.equal(second, torch.cat([OLD, OLD[[1, 3]]]))


def test_units_without_a_past_get_the_average_second_moment() -> None:
    grow = Grow(0, (0, 2, 3, 4), torch.ones(1, 3))
    first = layouts.follow(grow, "exp_avg", OLD, (0, 1), (4, 3), "keep")
    second = layouts.follow(grow, "exp_avg_sq", OLD, (0, 1), (4, 3), "keep")
    assert torch.equal(first[[0, 2, 3, 4]], OLD)
    assert torch.equal(first[1], torch.zeros(3))
    assert torch.equal(second[1], OLD.mean(0))


def test_factored_moments_follow_where_they_have_the_dim() -> None:
    rows, columns = OLD[:, :1], OLD[:1]
    assert torch.equal(layouts.follow(KEEP, "row_var", rows, (0, 1), (4, 3), "keep"), rows[[0, 2]])
    assert layouts.follow(KEEP, "col_var", columns, (0, 1), (4, 3), "keep") is columns


PACK = Rearrange(torch.tensor([[1, 2], [3, 5], [8, -1], [9, 11]]), (0, None))


@pytest.mark.parametrize("how", ["keep", "asymmetric"])
def test_packing_moves_every_moment(how: Any) -> None:
    first = layouts.follow(PACK, "exp_avg", OLD, (0, 1), (4, 3), how)
    assert torch.equal(first, PACK(OLD))
    second = layouts.follow(PACK, "exp_avg_sq", OLD, (0, 1), (4, 3), how)
    assert second[2, 1] == OLD.mean()  # no past: an average one, so that steps stay bounded
    second[2, 1] = 0
    assert torch.equal(second, PACK(OLD))


def test_factored_moments_are_averaged_over_what_came_to_lie_together() -> None:
    rows, columns = OLD[:, :1], OLD[:1]
    assert torch.equal(layouts.follow(PACK, "row_var", rows, (0, 1), (4, 3), "keep"), rows)
    found = layouts.follow(PACK, "col_var", columns, (0, 1), (4, 3), "keep")
    assert torch.equal(found, torch.tensor([[(1 + 0 + 2 + 0) / 4, (2 + 2 + 2) / 3]]))
    vector = layouts.follow(PACK, "exp_avg_sq_row", OLD[:, 0], (0,), (4, 3), "keep")
    assert torch.equal(vector, OLD[:, 0])
    back = layouts.follow(PACK.inverse((4, 3)), "col_var", found, (0, 1), (4, 2), "keep")
    assert back.shape == (1, 3)
    assert bool((back > 0).all())


def test_factored_moments_have_no_place_in_other_dims() -> None:
    deep = Rearrange(torch.arange(12).reshape(2, 3, 2), (None, None, None))
    full = layouts.follow(deep, "exp_avg", OLD, (0, 1), (4, 3), "keep")
    assert torch.equal(full, OLD.reshape(2, 3, 2))
    with pytest.raises(esper.EsperError, match="by rows and columns"):
        layouts.follow(deep, "row_var", OLD[:, :1], (0, 1), (4, 3), "keep")


def test_other_operations() -> None:
    patch = Patch(0, (1,), torch.zeros(1, 3))
    assert layouts.follow(patch, "exp_avg", OLD, (0, 1), (4, 3), "keep") is OLD
    new = layouts.follow(Replace(torch.ones(5, 3)), "exp_avg", OLD, (0, 1), (4, 3), "keep")
    assert torch.equal(new, torch.zeros(5, 3))
    factored = layouts.follow(Replace(torch.ones(5, 3)), "r", OLD[:, :1], (0, 1), (4, 3), "keep")
    assert factored.shape == (5, 1)
    step = torch.tensor(7.0)
    assert layouts.follow(KEEP, "step", step, (), (4, 3), "keep") is step


def test_the_transformers_layout() -> None:
    transformers = pytest.importorskip("transformers")
    model = traced()
    optimizer = transformers.Adafactor(model.parameters(), lr=0.01, relative_step=False)
    _stepped(optimizer, model)
    session = esper.Session(model, optimizer)
    with session.boundary() as boundary:
        (record,) = boundary.submit(CUT)
    assert record.kind == "passed", record.line()
    state = optimizer.state[model.get_parameter("block.0.weight")]
    assert (state["exp_avg_sq_row"].shape, state["exp_avg_sq_col"].shape) == ((9,), (10,))
    _stepped(optimizer, model)
