"""One form for result files: title, device, versions, rows; written atomically."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from esper.gate.environment import device_name
from esper.ir.atomic import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"


def write(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path."""
    data = {
        "title": title,
        "command": command,
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **(versions or {}),
        },
        "columns": list(rows[0]) if rows else [],
        "rows": list(rows),
        "notes": list(notes),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with atomic_write(path) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())
    return path
