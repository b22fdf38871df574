"""A training state as tensors alone: what is no tensor becomes JSON, and that a tensor of bytes.

So a whole state is one file of the side directory under one digest. Order of mappings and the
difference between tuples and lists are kept: both decide how floating-point sums are ordered
somewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from esper.errors import InputError, UsageError

_STATE = "state"


def pack(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by name, among them the rest of the state as `state`.

    Raises:
        UsageError: the state holds something that is neither plain data nor a tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_packed(state, "", tensors), separators=(",", ":"))
    tensors[_STATE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return tensors


def unpack(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The state that `pack` was given. Raises InputError."""
    try:
        data = json.loads(tensors[_STATE].numpy().tobytes())
        found: dict[str, Any] = _unpacked(data, tensors)
        return found
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"these tensors are no training state: {error!r}") from error


def _packed(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{path}"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key[:1] != "$" for key in value):
            return {k: _packed(v, f"{path}/{k}", tensors) for k, v in value.items()}
        pairs = [[_packed(k, path, tensors), _packed(v, path, tensors)] for k, v in value.items()]
        return {"$items": pairs}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"{path or 'the state'} is a {type(value).__name__}: give plain data, tensors")


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpacked(item, tensors) for item in value["$tuple"])
    if "$items" in value:
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in value["$items"]}
    return {key: _unpacked(item, tensors) for key, item in value.items()}
