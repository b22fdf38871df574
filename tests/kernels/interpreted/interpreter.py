"""Changes to Triton's interpreter, which becomes faster and sees programs write to one place."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def patch_once() -> None:
    """Patch Triton's language for a module once in a run, and not at each call of a function.

    The interpreter does the latter, which takes milliseconds, and never undoes it within a run.
    """
    patch, execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def patch_new(fn: Any) -> Any:
        if id(fn.__globals__) in patched:
            return None
        patched.add(id(fn.__globals__))
        return patch(fn)

    def execute_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return execute(self, *args, **kwargs)

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = execute_anew


def take_scalars() -> None:
    """Let a number be taken from an array of one, as Triton 3.6 does and NumPy no longer allows."""
    patch = interpreter._patch_lang_tensor

    def patch_too(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_too


def refuse_races() -> None:
    """An address that two programs of a launch write to is an error.

    Programs run one by one here, so that the last to write would hide that they overlap.
    """
    builder, execute = interpreter.InterpreterBuilder, interpreter.GridExecutor.__call__
    store = builder.create_masked_store
    writers: dict[int, Any] = {}

    def store_once(self: Any, pointers: Any, value: Any, mask: Any, *policy: Any) -> Any:
        for address in pointers.data[mask.data].ravel().tolist():
            if writers.setdefault(address, self.grid_idx) != self.grid_idx:
                raise AssertionError(f"{writers[address]} and {self.grid_idx} write to one place")
        return store(self, pointers, value, mask, *policy)

    def execute_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        writers.clear()
        return execute(self, *args, **kwargs)

    builder.create_masked_store = store_once
    interpreter.GridExecutor.__call__ = execute_anew
