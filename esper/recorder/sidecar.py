"""Tensors beside a log: safetensors files named by the digest of what they hold.

The log `run.esperlog` has the directory `run.esperlog.d`, made when it is first needed. Equal
tensors are stored once. A file is on disk, whole, before the event that names it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from esper.errors import InputError, OutputError, UsageError
from esper.ir.atomic import atomic_write

if TYPE_CHECKING:
    import torch


def directory(log: Path) -> Path:
    """The side directory of a log."""
    return log.with_name(log.name + ".d")


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """32 hexadecimal digits for names, dtypes, shapes and bits, in whatever order and place."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def size(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def store(log: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors and return their digest.

    Raises:
        UsageError: safetensors has no place for one of them.
        OutputError: the directory or the file cannot be written.
    """
    from safetensors.torch import save

    digest = tensors_digest(tensors)
    folder = directory(log)
    path = folder / f"{digest}.safetensors"
    if path.exists():
        return digest
    # Tied tensors and views are stored as what they hold: who shares memory is in the graph.
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        data = save(held)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"these tensors cannot be stored: {error}") from error
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    with atomic_write(path) as stream:
        stream.write(data)
    return digest


def remove(log: Path, digest: str) -> None:
    """Remove a file of tensors, if it is there. Raises OutputError."""
    path = directory(log) / f"{digest}.safetensors"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {error.strerror or error}") from error


def load(log: Path, digest: str) -> dict[str, torch.Tensor]:
    """Read tensors back.

    Raises:
        InputError: the file is missing, damaged, or does not hold what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    path = directory(log) / f"{digest}.safetensors"
    try:
        found = parse(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: the log names tensors that it held") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if tensors_digest(found) != digest:
        raise InputError(f"{path} is damaged: it does not hold what its name says")
    return found
