"""All cases of `tests.ir.test_rules`, and each of them traced."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor

import esper
from esper.ir.model import Model
from tests.ir import (
    rule_cases_address,
    rule_cases_attention,
    rule_cases_contraction,
    rule_cases_movement,
    rule_cases_other,
    rule_cases_products,
    rule_cases_recurrent,
    rule_cases_window,
)
from tests.ir.rule_case import Body, Case

CASES: dict[str, Case] = {
    **rule_cases_contraction.CASES,
    **rule_cases_attention.CASES,
    **rule_cases_movement.CASES,
    **rule_cases_other.CASES,
    **rule_cases_products.CASES,
    **rule_cases_recurrent.CASES,
    **rule_cases_address.CASES,
    **rule_cases_window.CASES,
}


@cache
def _trace(name: str) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    case = CASES[name]
    module = Body(case.fn, case.layers()).double().eval()
    x = case.x()
    x = x.double() if x.is_floating_point() else x
    return esper.trace(module, (x,)), x


def traced_case(name: str) -> tuple[Model, Tensor]:
    """A copy of a case in float64, and its input."""
    model, x = _trace(name)
    return copy.deepcopy(model), x
