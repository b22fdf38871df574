"""Shared by the tests of the command line: small models on disk, and checks of messages."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two linear layers with a buffer; [batch, 6] -> [batch, 3]."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.relu(self.first(x))
        out: Tensor = self.last(hidden) * self.scale
        return out


def small() -> Small:
    """The small model with fixed weights."""
    torch.manual_seed(0)
    return Small().eval()


def exported(module: nn.Module | None = None) -> bytes:
    """A `.pt2` archive of the small model with a dynamic batch."""
    buffer = io.BytesIO()
    program = torch.export.export(
        module or small(),
        (torch.ones(4, 6),),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
    )
    torch.export.save(program, buffer)
    return buffer.getvalue()


def saved(value: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.marker,)


def hostile_pickle(marker: Path) -> bytes:
    """A pickle that creates a directory when it is loaded."""
    return pickle.dumps(Hostile(marker))


def rewrite(archive: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The zip archive with every member passed through `change(path, data)`; None drops it.

    `path` is without the leading folder.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out.getvalue()


def edit_json(archive: bytes, member: str, edit: Callable[[Any], None]) -> bytes:
    """The archive with one JSON member edited in place by `edit`."""

    def change(path: str, data: bytes) -> bytes:
        if path != member:
            return data
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return rewrite(archive, change)


def assert_one_sentence(text: str) -> None:
    """A message that a person reads in one go."""
    assert text.strip(), "there is no message"
    assert "\n" not in text.strip(), text
    assert "Traceback" not in text
    assert len(text) < 700, text
