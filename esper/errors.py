"""Errors that reach a user: one sentence that says what, where and what to do.

Each class carries the exit code of `esper-opt` that it leads to.
"""

from __future__ import annotations


class EsperError(Exception):
    """Base of every error raised on purpose. `str(error)` is one sentence for the user."""

    exit_code = 2


class UsageError(EsperError):
    """An option, pipeline or argument is wrong."""


class BoundaryError(EsperError):
    """A change was attempted where none is safe: outside a session's boundary, or half way."""


class InputError(EsperError):
    """An input file cannot be read or does not hold what was promised."""

    exit_code = 3


class TraceError(EsperError):
    """A model cannot be exported to a graph."""

    exit_code = 4


class VerificationError(EsperError):
    """The IR breaks an invariant; `problems` lists each with the offending IR line."""

    exit_code = 5

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class OutputError(EsperError):
    """An output cannot be written."""

    exit_code = 2


class GateError(EsperError):
    """A measurement failed: a worker died, an output was not finite, time ran out."""

    exit_code = 5


class BackendError(GateError):
    """A backend is missing or cannot run the model."""


class QualityError(EsperError):
    """The user's evaluation raised, returned no finite number, or changed the model."""

    exit_code = 2


class TargetError(EsperError):
    """A quality or speed target was not reached and `--strict` asked for it."""

    exit_code = 6
