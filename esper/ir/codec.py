"""Node arguments and op targets as JSON, without pickle and without importing by name.

Plain JSON values stand for themselves (lists for lists); everything else is an object with one
key that names its kind, such as `{"node": "view_1"}` or `{"dtype": "float32"}`. Decoding builds
only the values listed here; ops are looked up in `torch.ops` and nowhere else.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from esper.ir import kept

# Ops of these libraries are admitted in artifacts; `trust` adds to them.
_TRUSTED = {"aten", "prims", "quantized_decomposed", "torchvision", "torchao", "esper"}
# Ops that reach outside the tensors they are given.
_DENIED = {"aten::from_file", "aten::save", "aten::_print"}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "getitem add sub mul floordiv truediv mod pow neg pos abs "
            "eq ne lt le gt ge and_ or_ not_"
        ).split()
    },
    **{
        f"torch.{name}": getattr(torch, name)
        for name in "sym_float sym_int sym_max sym_min sym_not sym_ite sym_sum".split()
        if hasattr(torch, name)
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **kept.FUNCTIONS,
}
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}

MAX_TEXT = 2000
_MAX_NAME = 500
_MAX_INT = 2**63
_MAX_DEPTH = 32
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,499}")
# Names of modules may hold signs that identifiers may not, but none that ends a string.
_TENSOR_NAME = re.compile(r"[\w+:@/-]{1,200}(\.[\w+:@/-]{1,200}){0,60}")
_TORCH_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DEVICE = re.compile(r"[a-z]{1,20}(:\d{1,4})?")


class CodecError(ValueError):
    """A value that has no place in an artifact; `str(error)` says which, for use in a sentence."""


def trust(library: str) -> None:
    """Admit ops of a custom library (`torch.ops.<library>`) in artifacts.

    An artifact may then call any op of that library on load, with fake tensors, and when run.
    """
    if not _IDENTIFIER.fullmatch(library):
        raise CodecError(f"{library!r} is no name of an op library")
    _TRUSTED.add(library)


# -- names and texts -----------------------------------------------------------------------------


def identifier(name: Any) -> str:
    """A name that may stand in generated Python code. Raises CodecError."""
    valid = type(name) is str and name.isidentifier() and not keyword.iskeyword(name)
    if not valid or len(name) > _MAX_NAME:
        raise CodecError(f"the name {_short(name)} of a node or argument is no identifier")
    return str(name)


def tensor_name(name: Any) -> str:
    """A dotted name of a module or tensor. Raises CodecError."""
    if type(name) is not str or not _TENSOR_NAME.fullmatch(name):
        raise CodecError(f"the name {_short(name)} of a module or tensor is not admitted")
    return name


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """One line for people. Raises CodecError."""
    if type(value) is not str or len(value) > limit or not value.isprintable():
        raise CodecError("a text in it is none that can be printed in one line")
    return value


def one_line(value: str) -> str:
    """What `text` admits of any text: one line, no control characters, not too long."""
    return "".join(c if c.isprintable() else " " for c in value)[:MAX_TEXT]


# -- arguments -----------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """JSON value of an argument. Raises CodecError for a type that is not admitted."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        if not -_MAX_INT <= value < _MAX_INT:
            raise CodecError(f"the integer {value} has more than 64 bits")
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    for kind, known, convert in _ENCODERS:
        if isinstance(value, known):
            return {kind: convert(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if type(value) is tuple or isinstance(value, torch.Size):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    raise CodecError(f"values of type {type(value).__name__} cannot be saved")


_ENCODERS: tuple[tuple[str, type, Callable[[Any], Any]], ...] = (
    ("node", fx.Node, lambda v: v.name),
    ("dtype", torch.dtype, lambda v: str(v).removeprefix("torch.")),
    ("device", torch.device, str),
    ("layout", torch.layout, lambda v: str(v).removeprefix("torch.")),
    ("memory_format", torch.memory_format, lambda v: str(v).removeprefix("torch.")),
    ("complex", complex, lambda v: [encode(v.real), encode(v.imag)]),
    ("slice", slice, lambda v: [encode(v.start), encode(v.stop), encode(v.step)]),
)


def decode(value: Any, nodes: Mapping[str, Any], depth: int = 0) -> Any:
    """Inverse of `encode`; `nodes` maps names of earlier nodes to what stands for them.

    Raises CodecError for anything that `encode` does not write.
    """
    if depth > _MAX_DEPTH:
        raise CodecError("its arguments are nested too deeply")
    if value is None or type(value) in (bool, str, float):
        return value
    if type(value) is int:
        if not -_MAX_INT <= value < _MAX_INT:
            raise CodecError("an integer has more than 64 bits")
        return value
    if type(value) is list:
        return [decode(item, nodes, depth + 1) for item in value]
    if type(value) is not dict or len(value) != 1:
        raise CodecError("an argument is not encoded as it should be")
    (kind, body), *_ = value.items()
    if kind == "node":
        if type(body) is not str or body not in nodes:
            raise CodecError(f"it uses {_short(body)}, which is no earlier node")
        return nodes[body]
    if kind == "float":
        if body not in ("inf", "-inf", "nan"):
            raise CodecError(f"{_short(body)} is no float")
        return float(body)
    if kind in ("dtype", "layout", "memory_format"):
        return torch_constant(kind, body)
    if kind == "device":
        return device(body)
    if kind in ("tuple", "complex", "slice", "dict"):
        return _container(kind, body, nodes, depth)
    raise CodecError(f"{_short(kind)} is no kind of argument")


def _container(kind: str, body: Any, nodes: Mapping[str, Any], depth: int) -> Any:
    if type(body) is not list:
        raise CodecError(f"a {kind} is not encoded as a list")
    items = [decode(item, nodes, depth + 1) for item in body]
    if kind == "tuple":
        return tuple(items)
    if kind == "slice" and len(items) == 3:
        return slice(*items)
    if kind == "complex" and len(items) == 2 and all(type(i) in (int, float) for i in items):
        return complex(*items)
    if kind == "dict" and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) in (str, int, bool, type(None))
        for pair in items
    ):
        return dict(items)
    raise CodecError(f"a {kind} is not encoded as it should be")


def torch_constant(kind: str, name: Any) -> Any:
    """A dtype, layout or memory format by name. Raises CodecError."""
    known = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
    value = None
    if type(name) is str and _TORCH_NAME.fullmatch(name):
        value = vars(torch).get(name)
    if not isinstance(value, known[kind]):
        raise CodecError(f"{_short(name)} is no {kind.replace('_', ' ')}")
    return value


def device(name: Any) -> torch.device:
    """A device by name. Raises CodecError."""
    try:
        if type(name) is str and _DEVICE.fullmatch(name):
            return torch.device(name)
    except RuntimeError:
        pass
    raise CodecError(f"{_short(name)} is no device")


def _short(value: Any) -> str:
    text = repr(value) if type(value) in (str, int, float) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


# -- targets -------------------------------------------------------------------------------------


def encode_target(target: Any) -> str:
    """`aten.linear.default`, `operator.getitem`. Raises CodecError for what may not be saved."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}.{target._opname}.{target._overloadname}"
        decode_target(name)
        return name
    try:
        return _FUNCTION_NAMES[target]
    except (KeyError, TypeError):
        raise CodecError(f"calls of {_name(target)} cannot be saved") from None


def decode_target(name: Any) -> Callable[..., Any]:
    """The op or function of that name. Raises CodecError; never imports anything."""
    if type(name) is not str:
        raise CodecError("its target is no name")
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) != 3 or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        raise CodecError(f"{_short(name)} is no op")
    library, op, overload = parts
    if library not in _TRUSTED:
        raise CodecError(
            f"ops of the library {library} are not admitted (esper.ir.codec.trust({library!r}) "
            f"admits them)"
        )
    if f"{library}::{op}" in _DENIED:
        raise CodecError(f"the op {name} is not admitted in artifacts")
    packet = getattr(getattr(torch.ops, library), op, None)
    found = getattr(packet, overload, None) if _is_packet(packet) else None
    if not isinstance(found, torch._ops.OpOverload):
        raise CodecError(f"the op {name} is not known to this PyTorch {torch.__version__}")
    return found


def _is_packet(value: Any) -> bool:
    return isinstance(value, torch._ops.OpOverloadPacket)


def _name(target: Any) -> str:
    return str(getattr(target, "__name__", None) or type(target).__name__)
