"""User code named on the command line: `FILE.py:name` and `package.module:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from esper.errors import UsageError


def load_function(where: str, option: str) -> Callable[..., Any]:
    """The callable that `where` names.

    Args:
        where: `FILE.py:name` or `package.module:name`.
        option: the option that it was given to, for messages.

    Raises:
        UsageError: no such file, module or name (with the nearest), not callable, or the code
            raised while it was imported (with the user's line).
    """
    path, separator, name = where.rpartition(":")
    if not separator or not path or not name:
        raise UsageError(f"{option} takes FILE.py:name or package.module:name, not {where!r}")
    module = _from_file(path, option) if path.endswith(".py") else _from_package(path, option)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in vars(module) if not n.startswith("_")]
            raise UsageError(f"{option}: {path} defines no {name!r}{nearest(name, names)}")
        value = getattr(value, part)
    if not callable(value):
        raise UsageError(f"{option}: {where} is a {type(value).__name__}, not a function")
    function: Callable[..., Any] = value
    return function


def call_user(function: Callable[..., Any], option: str, *args: Any) -> Any:
    """Call a user's function; what it raises becomes a UsageError with the user's line."""
    try:
        return function(*args)
    except Exception as error:
        name = getattr(function, "__name__", str(function))
        raise UsageError(f"{option}: {name} raised {describe(error)}") from error


def nearest(name: str, names: list[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or an empty string."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def describe(error: BaseException) -> str:
    """`ValueError: text, at file.py:3 (code)`, with the innermost line that is the user's."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        place = f"{os.path.basename(error.filename)}:{error.lineno} ({line})"
        return f"SyntaxError: {error.msg}, at {place}"
    where = user_line(error)
    return f"{text.rstrip('.')}, at {where}" if where else text.rstrip(".")


def user_line(error: BaseException) -> str | None:
    """`file.py:3 (code)` of the innermost frame outside installed packages and this one."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        path = os.path.abspath(frame.filename)
        foreign = "site-packages" in path or path.startswith((own, sys.base_prefix))
        if not foreign and not frame.filename.startswith("<"):
            found = f"{os.path.basename(path)}:{frame.lineno} ({(frame.line or '').strip()})"
    return found


def _from_file(path: str, option: str) -> ModuleType:
    if not os.path.isfile(path):
        raise UsageError(f"{option}: there is no file {path!r}{_nearest_file(path)}")
    full = os.path.abspath(path)
    name = "esper_user_" + hashlib.sha256(full.encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = os.path.dirname(full)
    if folder not in sys.path:  # the file may import its neighbours
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{option}: importing {path} raised {describe(error)}") from error
    return module


def _from_package(path: str, option: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            raise UsageError(
                f"{option}: there is no module {path!r} (for a file, write FILE.py:name)"
            ) from error
        raise UsageError(f"{option}: importing {path} raised {describe(error)}") from error
    except Exception as error:
        raise UsageError(f"{option}: importing {path} raised {describe(error)}") from error


def _nearest_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    try:
        names = [n for n in os.listdir(folder) if n.endswith(".py")]
    except OSError:
        return ""
    return nearest(os.path.basename(path), names)
