"""Models and inputs on their way to fresh processes: files, and no pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.errors import GateError
from esper.gate.backends.base import Call


def as_model(model: nn.Module, calls: Sequence[Call]) -> nn.Module:
    """The model itself if it is an `esper.Model`, else traced; both sides of a comparison are
    graphs, so that tracing alone is never taken for a speed-up."""
    from esper.ir.model import Model
    from esper.ir.trace import trace

    if isinstance(model, Model):
        return model
    args, kwargs = calls[0]
    return trace(model, args, kwargs)


def save_model(model: nn.Module, calls: Sequence[Call], path: Path) -> None:
    from esper.ir import artifact

    artifact.save(as_model(model, calls), path)


def load_model(path: Path) -> nn.Module:
    from esper.ir import artifact

    return artifact.load(path)


def save_calls(calls: Sequence[Call], path: Path) -> None:
    """Inputs as a file that `torch.load(weights_only=True)` reads back.

    Raises GateError for inputs that hold anything but tensors, numbers, strings and containers.
    """
    torch.save([(list(args), kwargs) for args, kwargs in calls], path)
    try:
        load_calls(path)
    except Exception as error:
        raise GateError(
            "the inputs must consist of tensors, numbers, strings, lists, tuples and dicts "
            f"to be measured in fresh processes: {str(error).splitlines()[0]}"
        ) from error


def load_calls(path: Path, device: str = "cpu") -> list[Call]:
    loaded: list[tuple[list[Any], dict[str, Any]]] = torch.load(
        path, weights_only=True, map_location=device
    )
    return [(tuple(args), dict(kwargs)) for args, kwargs in loaded]
