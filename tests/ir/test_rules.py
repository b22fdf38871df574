"""One small module a rule: which axes may be cut, what freezes the others, and that cuts are exact.

Every cuttable axis of every case is cut against the masked reference, with gradients and buffers.
"""

from __future__ import annotations

import pytest
import torch

import esper
from esper.ir.rules import REGISTRY, elementwise
from tests import oracle, zoo
from tests.ir.rule_cases import CASES, traced_case

pytestmark = pytest.mark.own_verification  # the oracle verifies the result of all cuts
every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_axes(name: str) -> None:
    model, _ = traced_case(name)
    case = CASES[name]
    axes = {key.removeprefix("axis:"): a for key, a in model.anatomy.axes.items() if a.size > 1}
    assert {key: axis.size for key, axis in axes.items() if axis.cuttable} == case.cuttable
    frozen = {key: axis.frozen_reason or "" for key, axis in axes.items() if not axis.cuttable}
    contracts = ("graph input (contract)", "graph output (contract)")
    assert {k: reason for k, reason in frozen.items() if reason not in contracts} == case.frozen
    assert tuple(key for key, axis in axes.items() if axis.lossy_reason) == case.lossy


@every_case
def test_cuts_are_exact(name: str) -> None:
    model, x = traced_case(name)
    axes = zoo.cuttable(model)
    for axis in axes.values():
        oracle.assert_exact_cut(model, {axis.id: zoo.some_units(axis)}, (x,), {})
    if axes:
        down_to_one = {axis.id: axis.unit_ids[axis.least :] for axis in axes.values()}
        cut = oracle.assert_exact_cut(model, down_to_one, (x,), {})
        for name in down_to_one:
            assert cut.anatomy.axes[name].unit_ids == tuple(range(axes[name].least))


def test_frozen_axes_name_the_node_that_freezes() -> None:
    model, _ = traced_case("cumprod")
    axis = model.anatomy.axes["axis:l0/neurons"]
    assert axis.frozen_node == "cumprod"
    assert "aten.cumprod.default" in (axis.frozen_reason or "")


def test_an_op_without_a_rule_is_listed() -> None:
    model, _ = traced_case("op without a rule")
    assert model.table.unknown == {"linalg_matrix_power": "aten.linalg_matrix_power.default"}


def test_a_second_rule_for_an_op_is_an_error() -> None:
    with pytest.raises(esper.errors.UsageError, match=r"aten\.relu|already registered"):
        REGISTRY.add(torch.ops.aten.linear.default, lambda r: None)


def test_mutating_ops_are_not_taken_for_element_wise_ones() -> None:
    assert REGISTRY.lookup(torch.ops.aten.relu.default) is not None
    assert REGISTRY.lookup(torch.ops.aten.relu_.default) is elementwise.inplace
    assert REGISTRY.lookup(torch.ops.aten.div.out) is None
