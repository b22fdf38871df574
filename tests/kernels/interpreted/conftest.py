"""These tests run kernels in Triton's interpreter.

A process must choose that before it imports Triton: `tests/kernels/test_triton_interpreter.py`
starts one that does.
"""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*.py"]
else:
    from tests.kernels.interpreted import interpreter

    interpreter.patch_once()
    interpreter.take_scalars()
    interpreter.refuse_races()
