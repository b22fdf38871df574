"""Model inputs as a file without pickle: tensors in safetensors, structure in its JSON header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from esper.errors import GateError
from esper.gate.backends.base import Call


def save_calls(calls: Sequence[Call], path: Path) -> None:
    """Write calls so that `load_calls` returns equal ones.

    Raises GateError for inputs that hold anything but tensors, numbers, strings and containers.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = [[_encode(list(args), tensors), _encode(kwargs, tensors)] for args, kwargs in calls]
    save_file(tensors, str(path), metadata={"calls": json.dumps(structure)})


def load_calls(path: Path, device: str = "cpu") -> list[Call]:
    """The calls in a file written by `save_calls`, tensors on `device`."""
    with safe_open(str(path), framework="pt", device=device) as file:
        structure = json.loads(file.metadata()["calls"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return [(tuple(_decode(args, tensors)), _decode(kwargs, tensors)) for args, kwargs in structure]


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON for a value: containers as {kind: items}, tensors by number, scalars as they are."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share storage, which inputs may well do.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) in (list, tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(item, tensors) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, tensors) for key, item in value.items()}}
    raise GateError(
        f"an input is a {type(value).__name__}; inputs must consist of tensors, numbers, strings, "
        "lists, tuples and dicts with string keys to be measured in fresh processes."
    )


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content.items()}
    items = [_decode(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
