"""Models on their way to fresh processes: `.esper` artifacts, no pickle."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from esper.gate.backends.base import Call, dynamic_arguments

if TYPE_CHECKING:
    from esper.ir.model import Model


ARTIFACT = "model.esper"
"""Name of the artifact in the directory of an eager model."""


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
    """The model in a file written by `save_model`, with memory of its own."""
    from esper.ir import artifact

    known = _PRELOADED.get(_version(path))
    return artifact.load(path) if known is None else with_fresh_memory(known)


_PRELOADED: dict[tuple[str, int, int], nn.Module] = {}
_PRELOADED_LIMIT = 4


def preload(path: Path) -> None:
    """Load a model here so that processes forked from this one need not parse it again.

    It is only read, never run; each process clones its tensors, see `with_fresh_memory`.
    """
    from esper.ir import artifact

    version = _version(path)
    model = _PRELOADED.pop(version, None)
    while len(_PRELOADED) >= _PRELOADED_LIMIT:
        del _PRELOADED[next(iter(_PRELOADED))]
    _PRELOADED[version] = artifact.load(path) if model is None else model


def _version(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def file_digest(path: Path) -> str:
    """A digest of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def with_fresh_memory(model: nn.Module) -> nn.Module:
    """A module that shares code with `model` and no tensor; tied tensors stay tied.

    Much cheaper than a deep copy, which would copy and recompile the graph.
    """
    clones: dict[int, torch.Tensor] = {}

    def clone(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in clones:
            copied = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
            clones[id(tensor)] = copied
        return clones[id(tensor)]

    def fresh(module: nn.Module) -> nn.Module:
        new = object.__new__(type(module))
        new.__dict__.update(module.__dict__)
        new.__dict__["_parameters"] = {k: clone(v) for k, v in module._parameters.items()}
        new.__dict__["_buffers"] = {k: clone(v) for k, v in module._buffers.items()}
        new.__dict__["_modules"] = {
            k: None if v is None else fresh(v) for k, v in module._modules.items()
        }
        return new

    return fresh(model)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model itself when it is there already, else a copy on `device`."""
    if all(p.device.type == device for p in [*model.parameters(), *model.buffers()]):
        return model
    return copy.deepcopy(model).to(device)
