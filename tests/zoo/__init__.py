"""The zoo traced: float64 models of `tests.models`, each traced once a session."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

import esper
from esper.ir.anatomy import Axis
from esper.ir.model import Model
from tests import oracle
from tests.models import MODELS


@cache
def _traced(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    return oracle.as_float64(esper.trace(module, args, kwargs)), args, kwargs


def traced(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    """A fresh float64 copy of a model of the zoo in evaluation mode, and its inputs."""
    model, args, kwargs = _traced(name)
    return copy.deepcopy(model), args, kwargs


def cuttable(model: Model) -> dict[str, Axis]:
    """The axes that may be cut, by ID."""
    return {name: axis for name, axis in model.anatomy.axes.items() if axis.cuttable}


def some_units(axis: Axis, share: float = 0.4, seed: int = 0) -> tuple[int, ...]:
    """Units of an axis, neither none nor all, chosen by seed and ID."""
    count = min(axis.size - axis.least, max(1, round(axis.size * share)))
    return tuple(sorted(random.Random(f"{seed} {axis.id}").sample(axis.unit_ids, count)))


def joint_cut(axes: Sequence[Axis], share: float = 0.4, seed: int = 0) -> dict[str, Sequence[int]]:
    """Some units of every axis given."""
    return {axis.id: some_units(axis, share, seed) for axis in axes}
