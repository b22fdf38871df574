"""Kernels in Triton's interpreter, in processes that choose it before they import Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

INTERPRETED = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in INTERPRETED.glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", INTERPRETED / file, "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
