"""Triton is imported when the first CUDA tensor comes, and only then."""

from __future__ import annotations

import importlib
from types import ModuleType


def triton_of(op: str) -> ModuleType:
    """The module of an op's Triton kernels.

    Raises:
        ImportError: where Triton is not installed.
    """
    try:
        return importlib.import_module(f"esper_kernels.{op}.triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ImportError(
            f"esper::{op} of a CUDA tensor needs Triton: pip install 'esper-opt[gpu]'"
        ) from error
