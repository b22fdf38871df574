"""Functions by name with their arguments: how a log says what made a run and its policies.

A log may come from anywhere, so its word is not enough to call something: what a replay calls must
carry the mark that `replayable` sets. A function that the user names is called without it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from esper.errors import InputError, UsageError
from esper.recorder import canonical
from esper.recorder.payload import Plain

_MARK = "__esper_replayable__"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    """A function or class and what it is called with.

    Attributes:
        function: `package.module:name`.
        arguments: by name, as plain data.
        weights: digest of tensors in the log's side directory, handed over as `weights`; "" if
            there are none.
    """

    function: str
    arguments: Plain = field(default_factory=dict)
    weights: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any], weights: str = "", /, **arguments: Any) -> Call:
        """The call of something that is importable. Raises UsageError for what is not plain."""
        name = f"{function.__module__}:{function.__qualname__}"
        if "<" in name:
            raise UsageError(f"{name} cannot be found by its name: define it at module level")
        return cls(name, canonical.plain(arguments), weights)

    @classmethod
    def parse(cls, data: Any) -> Call:
        """From plain data, as a log holds it. Raises InputError."""
        try:
            return cls(str(data["function"]), dict(data["arguments"]), str(data["weights"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this names no function to call: {data!r}") from error

    def resolve(self) -> Callable[..., Any]:
        """The function.

        Raises:
            InputError: it cannot be imported, or is not marked as `replayable`.
        """
        module, _, name = self.function.partition(":")
        try:
            found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"the log names {self.function}, which cannot be imported here ({error}): give it "
                "with --program FILE.py:fn, or run where it can be"
            ) from error
        if not getattr(found, _MARK, False):
            raise InputError(
                f"the log names {self.function}, which is not marked with @replayable: nothing "
                "else is called on a log's word"
            )
        call: Callable[..., Any] = found
        return call


def replayable(function: F) -> F:
    """Mark a function or class as one that a replay may call on the word of a log."""
    setattr(function, _MARK, True)
    return function


def program(function: F) -> F:
    """Make a function a program: a run that `esper replay` can run again from its log alone.

        @program
        def train(recorder, seed=0, steps=100):
            ...
            session = esper.Session(model, optimizer, recorder=recorder, generators=generators)
            while session.tick < steps:
                ...

        train("run.esperlog", seed=3)

    Its first parameter is `recorder` (a `Recorder`, the path of a new log, or None); all other
    arguments are plain data and are recorded, defaults included. So that a replay may start in the
    middle, it goes on from `session.tick`, takes chance from `session.generators`, and hands what
    else it remembers to the session (`stateful`).

    Raises:
        UsageError: on calling it with arguments that are not plain data.
    """
    signature = inspect.signature(function)
    if next(iter(signature.parameters), "") != "recorder":
        raise UsageError(f"the first parameter of {function.__qualname__} must be recorder")

    @functools.wraps(function)
    def run(recorder: Any, /, *args: Any, **kwargs: Any) -> Any:
        from esper.recorder.writer import Recorder

        bound = signature.bind(recorder, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "recorder"}
        call = Call.of(function, **arguments)
        if not isinstance(recorder, (str, os.PathLike)):
            if recorder is not None:
                recorder.program = call
            return function(recorder, *args, **kwargs)
        with Recorder(recorder) as own:
            own.program = call
            return function(own, *args, **kwargs)

    setattr(run, _MARK, True)
    made: Any = run
    return made  # type: ignore[no-any-return]


def config(
    recorded: Mapping[str, Any], program: Call | None, policies: Mapping[str, Call]
) -> dict[str, Any]:
    """The config of a run with what a replay needs. Raises UsageError for reserved keys."""
    taken = {"program", "policies"} & recorded.keys()
    if taken:
        raise UsageError(f"{min(taken)!r} is not a key of your own: a replay reads it")
    own: dict[str, Any] = dict(recorded)
    if program is not None:
        own["program"] = program
    if policies:
        own["policies"] = dict(policies)
    return own
