"""The inputs of a comparison in one form, whichever way the caller gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from esper.errors import GateError
from esper.gate.backends.base import Call, tensor_leaves

Inputs: TypeAlias = Any
"""`(args, kwargs)`, or a list of those, or a list of `(weight, args, kwargs)`."""


def normalise(inputs: Inputs) -> tuple[list[Call], list[float]]:
    """Calls and positive weights.

    Raises GateError when the inputs have another form, hold no tensor, or differ in structure.
    """
    if _is_call(inputs):
        inputs = [inputs]
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or len(inputs) == 0:
        raise GateError(
            "inputs must be (args, kwargs), or a list of (args, kwargs) or (weight, args, kwargs)."
        )
    calls: list[Call] = []
    weights: list[float] = []
    for position, item in enumerate(inputs):
        if _is_call(item):
            weight, (args, kwargs) = 1.0, item
        elif (
            isinstance(item, Sequence)
            and len(item) == 3
            and isinstance(item[0], (int, float))
            and _is_call(item[1:])
        ):
            weight, args, kwargs = float(item[0]), item[1], item[2]
        else:
            raise GateError(
                f"input {position} is neither (args, kwargs) nor (weight, args, kwargs)."
            )
        if not weight > 0.0 or weight == float("inf"):
            raise GateError(f"the weight of input {position} must be positive, got {weight}.")
        calls.append((tuple(args), dict(kwargs or {})))
        weights.append(weight)
    counts = {len(tensor_leaves(call)) for call in calls}
    if counts == {0}:
        raise GateError("the inputs hold no tensor.")
    if len(counts) != 1:
        raise GateError(
            "the inputs differ in the number of tensors; all must call the model alike."
        )
    return calls, weights


def _is_call(item: Any) -> bool:
    return (
        isinstance(item, Sequence)
        and len(item) == 2
        and isinstance(item[0], (tuple, list))
        and (item[1] is None or isinstance(item[1], Mapping))
    )
