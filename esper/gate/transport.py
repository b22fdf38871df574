"""Models on their way to fresh processes: `.esper` artifacts, no pickle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from esper.gate.backends.base import Call, dynamic_arguments

if TYPE_CHECKING:
    from esper.ir.model import Model


def as_model(model: nn.Module, calls: Sequence[Call]) -> Model:
    """The model itself if it is an `esper.Model`, else traced; both sides of a comparison are
    graphs, so that tracing alone is never taken for a speed-up.
    """
    from esper.ir.model import Model as Traced
    from esper.ir.trace import trace

    if isinstance(model, Traced):
        return model
    args, kwargs = calls[0]
    dynamic = dynamic_arguments(model, calls)
    return trace(model, args, kwargs, dynamic=dynamic or "batch")


def save_model(model: nn.Module, calls: Sequence[Call], path: Path) -> None:
    """Write the model as an `.esper` artifact."""
    from esper.ir import artifact

    artifact.save(as_model(model, calls), path)


def load_model(path: Path) -> nn.Module:
    """The model in a file written by `save_model`."""
    from esper.ir import artifact

    return artifact.load(path)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model itself when it is there already, else a copy on `device`."""
    if all(p.device.type == device for p in [*model.parameters(), *model.buffers()]):
        return model
    return copy.deepcopy(model).to(device)
