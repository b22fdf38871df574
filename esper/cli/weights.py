"""State dicts: reading them, fitting them to a module, and checking their values."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from esper.cli.pt2_read import first_line
from esper.errors import InputError

_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_SHOWN = 3


def read_weights(path: str, name: str, allow_pickle: bool, safe_ways: str) -> Any:
    """What a `torch.save` file holds: a state dict, or with `allow_pickle` also a module.

    Raises InputError; nothing but tensors and plain containers is unpickled by default.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if allow_pickle:
            raise InputError(f"{name} cannot be unpickled: {first_line(error)}") from error
        what = _foreign(str(error))
        raise InputError(
            f"{name} is a pickle that holds {what}, and reading it could run code: {safe_ways}, "
            "or pass --allow-pickle if you trust where the file comes from"
        ) from error
    except Exception as error:
        raise InputError(f"{name} is truncated or damaged: {first_line(error)}") from error
    if isinstance(found, (torch.nn.Module, torch.export.ExportedProgram)):
        return found
    return _state_dict(found, name)


def read_safetensors(path: str, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises InputError."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:
        raise InputError(f"{name} is a damaged safetensors file: {first_line(error)}") from error


def fill(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], name: str
) -> torch.nn.Module:
    """The module in evaluation mode with these weights.

    Raises InputError naming the first tensors that are missing, unexpected, or of another shape or
    dtype; nothing is cast or left at its initial value silently.
    """
    own = module.state_dict()
    problems: list[str] = []
    for key, tensor in weights.items():
        mine = own.get(key)
        if not isinstance(mine, torch.Tensor):
            continue
        if tuple(mine.shape) != tuple(tensor.shape):
            problems.append(
                f"{key} has shape {list(tensor.shape)} in the file and {list(mine.shape)} in the "
                "module"
            )
        elif mine.dtype != tensor.dtype:
            problems.append(
                f"{key} is {_dtype(tensor)} in the file and {_dtype(mine)} in the module"
            )
    if not problems:
        try:
            # Older files lack counters that load_state_dict fills in by itself.
            keys = module.load_state_dict(dict(weights), strict=False)
        except Exception as error:
            raise InputError(f"{name} does not fit the module: {first_line(error)}") from error
        problems += [f"the file lacks {key}" for key in keys.missing_keys]
        problems += [f"the module has no {key}" for key in keys.unexpected_keys]
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise InputError(
            f"{name} does not fit {type(module).__name__}, the module from --model: {shown}{more}"
        )
    return module.eval()


def check_finite(module: torch.nn.Module, name: str) -> None:
    """Raise InputError naming the first tensor with NaN or infinite values.

    Buffers may hold minus infinity, which attention masks are made of.
    """
    for kind, tensors in (
        ("parameter", module.named_parameters()),
        ("buffer", module.named_buffers()),
    ):
        for key, tensor in tensors:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            bad = ~torch.isfinite(tensor.detach())
            if kind == "buffer" and tensor.is_floating_point():
                bad &= tensor.detach() != -torch.inf
            count = int(bad.sum())
            if count:
                values = tensor.detach()[bad]
                what = "NaN" if bool(torch.isnan(values).any()) else "infinite values"
                raise InputError(
                    f"{name} has {what} in {kind} {key} ({count} of {tensor.numel()} values): a "
                    "model that diverged cannot be optimised"
                )


def _state_dict(found: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(found, Mapping):
        if found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {str(key): value for key, value in found.items()}
        for key in _NESTED:
            inner = found.get(key)
            if isinstance(inner, (Mapping, torch.nn.Module)) and inner is not found:
                return inner if isinstance(inner, torch.nn.Module) else _state_dict(inner, name)  # type: ignore[return-value]
        keys = ", ".join(repr(str(key)) for key in list(found)[:4])
        raise InputError(
            f"{name} holds no state dict: a dictionary with {keys or 'nothing in it'}, and none of "
            f"the usual names ({', '.join(_NESTED[:3])})"
        )
    raise InputError(
        f"{name} holds a {type(found).__name__}, which is neither model nor state dict"
    )


def _foreign(message: str) -> str:
    """What the unpickler objected to, e.g. `the foreign object posix.system`."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "GLOBAL "):
        if marker in message:
            return f"the object {message.split(marker, 1)[1].split()[0].strip('`.,')}"
    return "more than tensors"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
