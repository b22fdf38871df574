"""Reading the INPUT of a command, whatever it is, without running anything that is in it.

What a file is, is told by its content and never by its suffix. Nothing is unpickled beyond plain
tensors (`weights_only=True`) unless the caller passes `allow_pickle`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from esper.cli.pt2_read import first_line, load_trusted, read_program
from esper.cli.weights import check_finite, fill, read_safetensors, read_weights
from esper.errors import InputError, UsageError
from esper.passbase import Batch

Kind = Literal[
    "artifact", "exported", "directory", "torch", "safetensors", "compiled", "torchscript", "onnx"
]
_SAFE_WAYS = (
    "save it with torch.export.save, or save its state_dict and give --model FILE.py:factory"
)


@dataclass(frozen=True)
class Loaded:
    """A model that was read.

    Attributes:
        module: the model; an `esper.Model` when it came from a `.esper` file.
        kind: what the input was.
        inputs: example inputs found beside it, or None.
        keywords: whether it is called by keyword (transformers).
        hint: how `--inputs` could look for it, for messages.
        notes: sentences for the person who runs the command.
    """

    module: torch.nn.Module
    kind: Kind
    inputs: Batch | None = None
    keywords: bool = False
    hint: str = "x=float32[8,3,32,32]"
    notes: tuple[str, ...] = ()


def read_input(
    path: str,
    *,
    factory: Callable[[], Any] | None = None,
    allow_pickle: bool = False,
) -> Loaded:
    """Read a model.

    Args:
        path: a file, a directory in the Hugging Face layout, or `-` for standard input.
        factory: makes the module that a state dict belongs to (`--model`).
        allow_pickle: whether the file is trusted to run code while it is read.

    Raises:
        InputError: one sentence saying what is wrong with the file and what to do.
        UsageError: the factory failed, or standard input is a terminal.
    """
    if path == "-":
        with _standard_input() as (temporary, name):
            return _read(temporary, name, factory, allow_pickle)
    return _read(path, path, factory, allow_pickle)


def detect(path: str, name: str) -> Kind:
    """What a file is, by its content. Raises InputError when it is nothing known."""
    try:
        if os.path.isdir(path):
            return "directory"
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"there is no file {name!r}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    if not head:
        raise InputError(f"{name} is empty")
    if head.startswith(b"PK"):
        return _detect_zip(path, name)
    if _is_safetensors(head, os.path.getsize(path)):
        return "safetensors"
    if head[0] == 0x80 and 2 <= head[1] <= 5:  # the PROTO opcode of pickle
        return "torch"
    if head[0] == 0x08 and head[1] < 32 and (b"pytorch" in head or head[2] in (0x12, 0x3A)):
        return "onnx"  # field 1 of ModelProto (ir_version), then producer_name or graph
    raise InputError(
        f"{name} is no model file: it starts with {head[:8].hex(' ')}, which is neither a .pt2, "
        ".esper or .pt archive, nor safetensors, nor a pickle"
    )


def _detect_zip(path: str, name: str) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except Exception as error:  # truncated or damaged in any way
        raise InputError(f"{name} is truncated or damaged: {first_line(error)}") from error
    inner = {member.partition("/")[2] for member in members}
    if {"format", "graph.json"} <= members:
        return "artifact"
    if any(part.startswith("data/aotinductor/") for part in inner):
        return "compiled"
    if "archive_format" in inner or any(part.startswith("models/") for part in inner):
        return "exported"
    if "serialized_exported_program.json" in members:
        raise InputError(
            f"{name} was exported by PyTorch 2.7 or older: load it there and save it again"
        )
    if "constants.pkl" in inner and any(part.startswith("code/") for part in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "torch"
    raise InputError(
        f"{name} is a zip archive, but no model: it lacks the members of .pt2, .esper and .pt files"
    )


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= size - 8


def _read(path: str, name: str, factory: Callable[[], Any] | None, allow_pickle: bool) -> Loaded:
    kind = detect(path, name)
    if kind in ("torch", "safetensors"):
        loaded = _from_weights(path, name, kind, factory, allow_pickle)
    elif factory is not None:
        raise UsageError(f"--model goes with a state dict, and {name} holds a whole model")
    else:
        loaded = _READERS[kind](path, name, allow_pickle)
    check_finite(loaded.module, name)
    return loaded


def _artifact(path: str, name: str, allow_pickle: bool) -> Loaded:
    from esper.ir.artifact import load
    from esper.ir.model import Model

    try:
        model = load(path)
    except InputError as error:
        raise InputError(str(error).replace(path, name)) from error
    assert isinstance(model, Model)
    return Loaded(model, "artifact")


def _exported(path: str, name: str, allow_pickle: bool) -> Loaded:
    with open(path, "rb") as file:
        program = (load_trusted if allow_pickle else read_program)(file, name)
    try:
        module = program.module(check_guards=False)
    except Exception as error:
        raise InputError(f"{name} cannot be turned into a module: {first_line(error)}") from error
    for method in ("train", "eval"):  # exported modules refuse both; the graph has one mode
        module.__dict__.pop(method, None)
    examples = program.example_inputs
    batch = None if examples is None else (tuple(examples[0]), dict(examples[1]))
    return Loaded(module.eval(), "exported", batch, keywords=bool(batch and batch[1]))


def _directory(path: str, name: str, allow_pickle: bool) -> Loaded:
    from esper.cli.huggingface import read_directory

    module, hint, notes = read_directory(path, name)
    return Loaded(module, "directory", keywords=True, hint=hint, notes=notes)


def _compiled(path: str, name: str, allow_pickle: bool) -> Loaded:
    raise InputError(
        f"{name} holds compiled code (AOTInductor), which has no graph to optimise: give the "
        "exported program from which it was made"
    )


def _torchscript(path: str, name: str, allow_pickle: bool) -> Loaded:
    raise InputError(
        f"{name} is a TorchScript archive, which torch.export cannot read: export the original "
        "module with torch.export.save"
    )


def _onnx(path: str, name: str, allow_pickle: bool) -> Loaded:
    raise InputError(
        f"{name} is an ONNX model, and no dependable converter from ONNX to PyTorch is installed: "
        "give the PyTorch model from which it was made"
    )


_READERS: dict[Kind, Callable[[str, str, bool], Loaded]] = {
    "artifact": _artifact,
    "exported": _exported,
    "directory": _directory,
    "compiled": _compiled,
    "torchscript": _torchscript,
    "onnx": _onnx,
}


def _from_weights(
    path: str, name: str, kind: Kind, factory: Callable[[], Any] | None, allow_pickle: bool
) -> Loaded:
    if kind == "safetensors":
        found: Any = read_safetensors(path, name)
    else:
        found = read_weights(path, name, allow_pickle, _SAFE_WAYS)
    if isinstance(found, torch.export.ExportedProgram):
        raise InputError(f"{name} holds a pickled ExportedProgram: save it with torch.export.save")
    if isinstance(found, torch.nn.Module):
        if factory is not None:
            raise UsageError(f"--model goes with a state dict, and {name} holds a whole module")
        return Loaded(found.eval(), "torch")
    if factory is None:
        raise InputError(
            f"{name} holds a state dict, which has no code: give --model FILE.py:factory or "
            "--model package.module:factory, a function that returns the module"
        )
    return Loaded(fill(_build(factory), found, name), kind)


def _build(factory: Callable[[], Any]) -> torch.nn.Module:
    from esper.cli.loaders import call_user

    module = call_user(factory, "--model")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"--model: the factory returned a {type(module).__name__}, not a module")
    return module


@contextmanager
def _standard_input() -> Iterator[tuple[str, str]]:
    """Standard input as a temporary file, since archives are read from their end."""
    if sys.stdin.isatty():
        raise UsageError("'-' reads a model from standard input, and that is a terminal")
    with tempfile.NamedTemporaryFile(prefix="esper-stdin-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name, "standard input"
