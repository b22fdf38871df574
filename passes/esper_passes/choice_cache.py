"""What duels between ops and kernels said: shipped for a device, or measured here and kept.

Measurements lie in one JSON file in the user's cache directory. An entry is named by all that
decides: device, threads, versions, op, sizes, dtype, pattern. A file that cannot be read is built
anew. Tables that come with `esper_kernels` (`tuned/choices/DEVICE.json`) have the same form, and
name their entries without device and versions.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

import esper
from esper.errors import OutputError
from esper.gate.environment import device_name
from esper.ir.atomic import atomic_write
from esper_passes.duel import Ratio

_FORMAT = 1


def directory() -> Path:
    """`esper` in the user's cache directory: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esper"


class ChoiceCache:
    """Ratios by what was measured. Nothing is read before it is asked for.

    Args:
        device: `cpu` or `cuda`.
        threads: with which a CPU computes.
        path: of the file.

    Attributes:
        trouble: a sentence about a file that could not be read or written; empty without.
    """

    def __init__(self, device: str, threads: int, path: Path | None = None) -> None:
        self._path = path or directory() / "lowering.json"
        self._known: dict[str, Ratio] | None = None
        self._shipped = shipped(device_name(device))
        self._here = key(
            {
                "device": device_name(device),
                "threads": threads if device == "cpu" else 0,
                "torch": torch.__version__,
                "esper": esper.__version__,
            }
        )
        self.trouble = ""

    def get(self, facts: Mapping[str, object]) -> Ratio | None:
        """What is known of op, sizes, dtype and pattern on this device; None for nothing."""
        if self._known is None:
            self._known = self._read()
        name = key(facts)
        return self._shipped.get(name) or self._known.get(f"{self._here} {name}")

    def put(self, facts: Mapping[str, object], ratio: Ratio) -> None:
        """Keep a measurement, beside what other processes have kept meanwhile."""
        known = {**(self._known or {}), **self._read(), f"{self._here} {key(facts)}": ratio}
        self._known = known
        entries = {name: list(astuple(ratio)) for name, ratio in sorted(known.items())}
        text = json.dumps({"format": _FORMAT, "entries": entries}, indent=0)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as stream:
                stream.write(text.encode())
        except (OSError, OutputError) as error:
            self.trouble = f"what was measured could not be kept: {error}"

    def _read(self) -> dict[str, Ratio]:
        try:
            return _entries(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self.trouble = f"{self._path} is damaged and is built anew: {error!r}"
            return {}


def shipped(device: str) -> Mapping[str, Ratio]:
    """The table that comes with the kernels for a device; empty where nobody has measured it."""
    folder = importlib.resources.files("esper_kernels") / "tuned" / "choices"
    file = folder / f"{device.replace(' ', '_')}.json"
    return _entries(json.loads(file.read_text())) if file.is_file() else {}


def key(facts: Mapping[str, object]) -> str:
    """Facts as the name of an entry."""
    return " ".join(f"{name}={value}" for name, value in facts.items())


def _entries(data: Any) -> dict[str, Ratio]:
    if data["format"] != _FORMAT:
        raise ValueError(f"format {data['format']!r} is not {_FORMAT}")
    return {
        str(name): Ratio(float(median), float(lower), float(upper), int(pairs))
        for name, (median, lower, upper, pairs) in data["entries"].items()
    }
