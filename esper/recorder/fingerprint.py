"""The platform that bitwise repetition depends on, as far as PyTorch names it.

https://docs.pytorch.org/docs/stable/notes/randomness.html: no promise holds across releases,
platforms, devices or thread counts, so a replay compares these first. Nothing here names the host
or the user.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from esper.processor import processor
from esper.recorder.happenings import RunStarted
from esper.recorder.payload import Plain


def fingerprint(device: str = "cpu") -> dict[str, Any]:
    """Versions, device, threads and flags of this process.

    Args:
        device: on which the run computes: cpu, cuda or cuda:N.
    """
    import numpy
    import torch

    cuda = device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if cuda else processor(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
    }


def run_started(
    *,
    seeds: Mapping[str, int],
    device: str = "cpu",
    config: Plain | None = None,
    model: str = "",
) -> RunStarted:
    """The payload of the first event of a run on this platform."""
    return RunStarted(
        platform=fingerprint(device), seeds=dict(seeds), config=dict(config or {}), model=model
    )


def differences(recorded: Plain, here: Plain) -> list[str]:
    """Names of what differs between two fingerprints, sorted; empty if bits may be compared."""
    return sorted(k for k in {*recorded, *here} if recorded.get(k) != here.get(k))
