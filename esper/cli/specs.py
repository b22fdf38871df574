"""Options that describe data: `--inputs`, `--data`, `--eval`, `--finetune`, `--max-loss`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from esper.cli.loaders import call_user, load_function, nearest
from esper.errors import GateError, QualityError, UsageError
from esper.gate.quality import MaxLoss
from esper.passbase import Batch

_SPEC = re.compile(
    r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<shape>[^\]]*)\](?::(?P<max>-?\w[\w.]*))?"
)
_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_EXAMPLE = "input_ids=int64[8,64]:30000,attention_mask=int64[8,64]:2"


@dataclass(frozen=True)
class Inputs:
    """Example inputs.

    Attributes:
        example: `(args, kwargs)` to trace with.
        timed: what the gate measures: the same, or a weighted list of shapes.
    """

    example: Batch
    timed: Any


def parse_max_loss(text: str) -> MaxLoss:
    """`1%` -> relative 0.01; `0.5` -> absolute 0.5. Raises UsageError."""
    try:
        found = MaxLoss.of(text)
    except QualityError:
        found = None
    if found is None or (found.relative and found.amount > 1):
        raise UsageError(
            f"--max-loss takes a percentage such as 1% (relative) or a number such as 0.5 "
            f"(absolute), not {text!r}"
        )
    return found


def make_inputs(text: str, module: torch.nn.Module, seed: int, *, keywords: bool = False) -> Inputs:
    """Example inputs for `--inputs FILE.py:fn | SPEC`.

    Args:
        text: a function returning `(args, kwargs)` (or a list of those, or of
            `(weight, args, kwargs)`: the first is traced, all are timed), or a specification such
            as `input_ids=int64[8,64]:30000` (name, dtype, shape, exclusive maximum of integers).
        module: the model, whose argument names are checked.
        seed: for random values.
        keywords: pass tensors by keyword even where they could go by position. An exported
            program is called the way it was exported, and transformers are called by keyword.

    Raises:
        UsageError: naming what is wrong and how it is written.
    """
    if _looks_like_function(text):
        found = call_user(load_function(text, "--inputs"), "--inputs")
        return _as_inputs(found, f"--inputs: {text} returned")
    batch = _bind(_random_tensors(text, seed), module, keywords)
    return Inputs(batch, batch)


def _as_inputs(value: Any, what: str) -> Inputs:
    if isinstance(value, list) and value and not isinstance(value[0], torch.Tensor):
        from esper.gate.inputs import normalise

        try:
            calls, _ = normalise(value)
        except GateError as error:
            raise UsageError(f"{what} inputs that cannot be used: {error}") from error
        return Inputs(calls[0], value)
    batch = as_batch(value, what)
    return Inputs(batch, batch)


def as_batch(value: Any, what: str) -> Batch:
    """`(args, kwargs)`, also from a bare tensor, tuple of tensors or mapping."""
    if isinstance(value, torch.Tensor):
        return (value,), {}
    if isinstance(value, Mapping):
        return (), dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if (
            len(value) == 2
            and isinstance(value[0], (tuple, list))
            and isinstance(value[1], Mapping)
        ):
            return tuple(value[0]), dict(value[1])
        if value and all(isinstance(item, torch.Tensor) for item in value):
            return tuple(value), {}
    raise UsageError(f"{what} {_shown(value)} where (args, kwargs) is needed, such as ((x,), {{}})")


def make_data(text: str) -> list[Batch]:
    """Batches for `--data FILE.py:fn`: what the function returns or yields, as a list."""
    found = call_user(load_function(text, "--data"), "--data")
    batches: list[Batch] = []

    def collect() -> None:
        for item in found:
            batches.append(as_batch(item, f"--data: batch {len(batches)} of {text} is"))

    if isinstance(found, torch.Tensor) or not hasattr(found, "__iter__"):
        raise UsageError(
            f"--data: {text} returned {_shown(found)} where batches of (args, kwargs) are needed"
        )
    try:
        collect()
    except UsageError:
        raise
    except Exception as error:
        from esper.cli.loaders import describe

        raise UsageError(f"--data: {text} raised {describe(error)}") from error
    if not batches:
        raise UsageError(f"--data: {text} gave no batches")
    return batches


def make_evaluate(text: str) -> Callable[[Any], float]:
    """The quality function of `--eval FILE.py:fn`."""
    return _taking_module(text, "--eval")


def make_finetune(text: str) -> Callable[[Any], Any]:
    """The training function of `--finetune FILE.py:fn`."""
    return _taking_module(text, "--finetune")


def _taking_module(text: str, option: str) -> Callable[[Any], Any]:
    function = load_function(text, option)
    try:
        inspect.signature(function).bind(object())
    except TypeError as error:
        raise UsageError(f"{option}: {text} must take the module as its one argument") from error
    except ValueError:
        pass  # builtins have no signature to check
    return function


def parse_dynamic(text: str) -> dict[str, tuple[int, ...]]:
    """`input_ids:1,mask:1` -> `{"input_ids": (1,), "mask": (1,)}`. Raises UsageError."""
    found: dict[str, tuple[int, ...]] = {}
    for item in text.split(","):
        name, separator, dim = item.strip().rpartition(":")
        if not separator or not name.isidentifier() or not re.fullmatch(r"-?\d+", dim):
            raise UsageError(f"--dynamic takes NAME:DIM,... such as input_ids:1, not {item!r}")
        found[name] = (*found.get(name, ()), int(dim))
    return found


def _looks_like_function(text: str) -> bool:
    return "=" not in text or re.match(r"[^=]*\.py:", text) is not None


def _random_tensors(text: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    rest = text.strip()
    while rest:
        match = _SPEC.match(rest)
        if match is None or (match.end() < len(rest) and rest[match.end()] != ","):
            raise UsageError(
                f"--inputs cannot be read at {rest[:40]!r}: write NAME=DTYPE[SHAPE]:MAX,... such "
                f"as {_EXAMPLE}"
            )
        if match["name"] in tensors:
            raise UsageError(f"--inputs gives {match['name']!r} twice")
        tensors[match["name"]] = _random_tensor(match, generator)
        rest = rest[match.end() :].removeprefix(",").strip()
    return tensors


def _random_tensor(match: re.Match[str], generator: torch.Generator) -> torch.Tensor:
    name, dtype = match["name"], _DTYPES.get(match["dtype"])
    if dtype is None:
        known = list(_DTYPES)
        raise UsageError(
            f"--inputs: {match['dtype']!r} is no dtype{nearest(match['dtype'], known)} "
            f"(known: {', '.join(known)})"
        )
    sizes = [size.strip() for size in match["shape"].split(",") if size.strip()]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--inputs: the shape [{match['shape']}] of {name} needs positive sizes")
    shape = [int(size) for size in sizes]
    if dtype.is_floating_point:
        if match["max"] is not None:
            raise UsageError(
                f"--inputs: {name} is {match['dtype']}, drawn from a normal distribution: "
                f"leave out :{match['max']}"
            )
        return torch.randn(shape, generator=generator).to(dtype)
    limit = match["max"] if match["max"] is not None else "2" if dtype is torch.bool else None
    if limit is None:
        raise UsageError(
            f"--inputs: {name} holds integers and needs an exclusive maximum, such as "
            f"{name}={match['dtype']}[{match['shape']}]:30000"
        )
    if not limit.isdecimal() or int(limit) < 1:
        raise UsageError(f"--inputs: the maximum of {name} must be a positive integer, not {limit}")
    if dtype is not torch.bool and int(limit) - 1 > torch.iinfo(dtype).max:
        raise UsageError(f"--inputs: the maximum {limit} of {name} does not fit {match['dtype']}")
    return torch.randint(int(limit), shape, generator=generator).to(dtype)


def _bind(tensors: dict[str, torch.Tensor], module: torch.nn.Module, keywords: bool) -> Batch:
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return (), dict(tensors)
    kinds = [p.kind for p in parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return (), dict(tensors)
    for name in tensors:
        if name not in parameters:
            if inspect.Parameter.VAR_POSITIONAL in kinds:
                return tuple(tensors.values()), {}
            raise UsageError(
                f"--inputs: the model takes no {name!r}{nearest(name, list(parameters))} "
                f"(it takes {', '.join(parameters)})"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in tensors:
            if parameter.kind is parameter.VAR_POSITIONAL:
                continue
            raise UsageError(f"--inputs leaves out {name!r}, which the model needs")
    first = list(parameters)[: len(tensors)]
    if (
        first == list(tensors) and not keywords
    ):  # in order from the first: positional, as most callers write it
        return tuple(tensors.values()), {}
    return (), dict(tensors)


def _shown(value: Any) -> str:
    text = type(value).__name__
    if isinstance(value, (tuple, list)):
        inner = ", ".join(type(item).__name__ for item in value[:3])
        text += f" ({inner}{', ...' if len(value) > 3 else ''})"
    return f"a {text}"
