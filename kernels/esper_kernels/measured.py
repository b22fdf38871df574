"""Measured configs: as JSON, and those kept on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from esper_kernels.config import Config, Problem


def read_table(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """Configs by key, from what `write_table` made."""
    return {key: Config(**fields) for key, fields in data.items()}


def write_table(table: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """The JSON form of a table of configs."""
    return {key: asdict(config) for key, config in sorted(table.items())}


def folder() -> Path:
    """Where measurements are kept: $XDG_CACHE_HOME or ~/.cache, in esper/kernels."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "esper" / "kernels"


def recall(problem: Problem, configs: tuple[Config, ...], device: str) -> Config | None:
    """What was measured here for the same product, device, Triton and choice; None if nothing."""
    return _load(_file(device, configs)).get(problem.key)


def keep(problem: Problem, configs: tuple[Config, ...], device: str, best: Config) -> None:
    """Add a result to the file. Whole files replace each other, so none is ever half written."""
    file = _file(device, configs)
    _load.cache_clear()
    table = write_table({**_load(file), problem.key: best})
    _load.cache_clear()
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, suffix=".json", delete=False
    ) as temporary:
        json.dump(table, temporary, indent=1)
        temporary.flush()
        os.fsync(temporary.fileno())
    os.replace(temporary.name, file)


def _file(device: str, configs: tuple[Config, ...]) -> Path:
    """One file for what results depend on besides the product: device, Triton, configs."""
    choice = hashlib.sha256(repr(configs).encode()).hexdigest()[:12]
    return folder() / f"{device.replace(' ', '_')}-{_triton()}-{choice}.json"


@cache
def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


@cache
def _load(file: Path) -> dict[str, Config]:
    """A file's table; empty where there is none, or where it is not one of these."""
    try:
        return read_table(json.loads(file.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):  # written by hand or by another version
        return {}
