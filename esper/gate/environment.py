"""Names and versions of what a figure was measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from esper.gate.backends import backend
from esper.gate.backends.base import Context
from esper.gate.verdict import Environment
from esper.processor import processor


def device_name(device: str) -> str:
    """The marketing name of the GPU, or the processor model, what it computes with, and cores.

    Virtual machines name generations of processors alike that differ in instructions, and with
    them in which kernel is the fastest.
    """
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()} ({_instructions()}), {cores} {'core' if cores == 1 else 'cores'}"


def _instructions() -> str:
    """What PyTorch chooses kernels by: the width of vectors, and products of short types."""
    short = {"VNNI": "vnni", "BF16": "avx512_bf16", "AMX": "amx_tile"}
    checks = {
        name: getattr(torch.cpu, f"_is_{flag}_supported", None) for name, flag in short.items()
    }
    found = [name for name, check in checks.items() if check is not None and check()]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *found])


def last_level_cache(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache of the processor; where Linux does not tell, an upper bound."""
    sizes = [f.read_text().strip() for f in cpu.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    known = [int(s[:-1]) * units[s[-1]] for s in sizes if s[-1:] in units and s[:-1].isdigit()]
    return max(known, default=2**30)


def environment(context: Context, backends: Iterable[str]) -> Environment:
    """The environment of a measurement with these backends."""
    versions = {"torch": str(torch.__version__)}
    for name in sorted(set(backends)):
        versions |= backend(name).versions()
    return Environment(
        device=context.device,
        device_name=device_name(context.device),
        threads=context.threads,
        python=platform.python_version(),
        versions=versions,
    )


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; storage shared by tied ones counts once."""
    sizes = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
