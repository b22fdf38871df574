"""The name of this machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

_NUMBERS = ("cpu family", "model")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model as Linux names it, with its numbers; elsewhere what Python knows of it.

    The numbers tell generations apart that virtual machines call by one name: `AMD EPYC, family 26
    model 2`. https://docs.kernel.org/filesystems/proc.html; not every architecture has the lines.
    """
    if not cpuinfo.exists():
        return _known()
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    numbers = [f"{name.removeprefix('cpu ')} {found[name]}" for name in _NUMBERS if name in found]
    return ", ".join(filter(None, (found.get("model name") or _known(), " ".join(numbers))))


def _known() -> str:
    return platform.processor() or platform.machine()
