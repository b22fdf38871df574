"""These tests run kernels in Triton's interpreter.

A process must choose that before it imports Triton: `tests/kernels/test_triton_interpreter.py`
starts one that does.
"""

from __future__ import annotations

import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*.py"]
else:
    from triton.runtime import interpreter

    _patch, _execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    _patched: set[int] = set()

    def _patch_once(fn: Any) -> Any:
        """Patch Triton's language for a module once in a run, and not at each call of a function.

        The interpreter does the latter, in milliseconds, and never undoes it within a run.
        """
        if id(fn.__globals__) in _patched:
            return None
        _patched.add(id(fn.__globals__))
        return _patch(fn)

    def _execute_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        _patched.clear()
        return _execute(self, *args, **kwargs)

    interpreter._patch_lang = _patch_once
    interpreter.GridExecutor.__call__ = _execute_anew
